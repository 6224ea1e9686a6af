"""All the safetensors files of a checkpoint folder, read as one: shards, index, leftovers.

Which files count: those that `model.safetensors.index.json` lists; without it `model*.safetensors`;
without those, every other `*.safetensors` (Mistral's `consolidated*` only when there is nothing
else). Files left aside are noted, never silently skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from assembler.errors import CheckpointError, did_you_mean
from assembler.weights.checkpoint_files import CheckpointFiles, read_start
from assembler.weights.finding import Finding
from assembler.weights.safetensors_header import read_safetensors_header
from assembler.weights.tensor_info import TensorInfo, TensorListing

INDEX_NAME = "model.safetensors.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pth", "*.pt", "*.ckpt")
SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")


def read_safetensors_file(file: Path) -> TensorListing:
    """List one safetensors file on its own."""
    listing = read_safetensors_header(read_start(file))
    shard = SHARD_NAME.fullmatch(file.name)
    if shard is None or int(shard["count"]) == 1:
        return listing
    message = f"is one shard of {int(shard['count'])}; the others are not read"
    hint = f"Pass the folder {file.parent} for all of them."
    note = Finding("index", file.name, message, str(file), hint, severity="note")
    return TensorListing(listing.tensors, listing.metadata, (*listing.findings, note))


def read_safetensors_folder(files: CheckpointFiles) -> TensorListing:
    """List the tensors of every safetensors file of a checkpoint folder.

    Raises CheckpointError when the folder has no safetensors, or a header that cannot be read.
    """
    index_file = files.root / INDEX_NAME
    if files.has(INDEX_NAME):
        weight_map, metadata, findings = _read_shard_index(files)
        names = sorted(set(weight_map.values()))
        findings += _absent_shards(files, names, weight_map)
    else:
        weight_map, metadata, findings = None, {}, []
        names = _files_without_index(files)
        findings += _gaps_in_numbering(files, names)
    present = [name for name in names if files.has(name)]
    listings = _read_headers(files, present)
    tensors, merge_findings = _merge(listings, weight_map or {})
    findings += merge_findings
    if weight_map is not None:
        findings += _index_disagreements(index_file, weight_map, listings)
    findings += _left_aside(files, names, has_index=weight_map is not None)
    for listing in listings.values():
        metadata = {**listing.metadata, **metadata}
        findings += listing.findings
    return TensorListing(tensors, metadata, tuple(findings))


def _read_headers(files: CheckpointFiles, names: list[str]) -> dict[str, TensorListing]:
    """What each file lists. Raises one CheckpointError for all files that are damaged."""
    listings, damaged = {}, []
    for name, start in zip(names, files.starts(names), strict=True):
        try:
            listings[name] = read_safetensors_header(start)
        except CheckpointError as error:
            damaged.append(str(error))
    if damaged:
        raise CheckpointError("\n".join(damaged))
    return listings


def _read_shard_index(
    files: CheckpointFiles,
) -> tuple[dict[str, str], dict[str, Any], list[Finding]]:
    """(tensor -> file name, metadata, findings) of a `model.safetensors.index.json`."""
    file = files.root / INDEX_NAME
    findings: list[Finding] = []

    def note_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique: dict[str, Any] = {}
        for key, value in pairs:
            if key in unique:
                message = f"is listed twice: in {unique[key]} and in {value}"
                findings.append(Finding("duplicate", key, message, str(file)))
            unique.setdefault(key, value)
        return unique

    raw = files.read(INDEX_NAME)
    try:
        content = json.loads(raw.decode(), object_pairs_hook=note_repeated)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}.") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{file}: has no `weight_map` of tensor names to file names.")
    for tensor, name in weight_map.items():
        path = PurePosixPath(name) if isinstance(name, str) else None
        if path is None or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise CheckpointError(
                f"{file}: lists tensor '{tensor}' in {name!r}, which is no file of this folder."
            )
    metadata = content.get("metadata")
    return weight_map, metadata if isinstance(metadata, dict) else {}, findings


def _absent_shards(
    files: CheckpointFiles, names: Sequence[str], weight_map: Mapping[str, str]
) -> list[Finding]:
    """One finding for each file that the index lists and the folder lacks.

    Only a file that the index does not list can be the one that was meant.
    """
    findings = []
    listed = set(names)
    spare = [name for name in _matching(files, ["*.safetensors"]) if name not in listed]
    for name in names:
        if files.has(name):
            continue
        tensors = sorted(tensor for tensor, file in weight_map.items() if file == name)
        some = ", ".join(tensors[:3]) + (", ..." if len(tensors) > 3 else "")
        message = f"is listed as the file of {len(tensors)} tensors ({some}) but is absent"
        hint = f"{files.if_absent}{did_you_mean(name, spare)}"
        findings.append(Finding("index", name, message, str(files.root / INDEX_NAME), hint))
    return findings


def _files_without_index(files: CheckpointFiles) -> list[str]:
    """The files that make up the checkpoint when no index says so."""
    folder = files.root
    names = _matching(files, ["*.safetensors"])
    hub_names = [name for name in names if fnmatch(name, "model*.safetensors")]
    others = [name for name in names if not fnmatch(name, "consolidated*")]
    chosen = hub_names or others or names
    if chosen:
        return chosen
    pickles = _matching(files, PICKLE_PATTERNS)
    if pickles:
        raise CheckpointError(
            f"{folder}: holds only pickled weights ({', '.join(pickles[:3])}), which can run code "
            "when opened and are not read. Convert them to safetensors: load the folder with "
            "transformers and call `model.save_pretrained(new_folder)`."
        )
    raise CheckpointError(
        f"{folder}: holds no *.safetensors and no .gguf file. Pass the folder of a checkpoint."
    )


def _gaps_in_numbering(files: CheckpointFiles, names: Iterable[str]) -> list[Finding]:
    """Shards that `...-of-N` file names promise but that are not there."""
    present: dict[tuple[str, str], list[int]] = {}
    for name in names:
        if shard := SHARD_NAME.fullmatch(name):
            present.setdefault((shard["stem"], shard["count"]), []).append(int(shard["number"]))
    findings = []
    for (stem, count), numbers in present.items():
        for number in sorted(set(range(1, int(count) + 1)) - set(numbers)):
            name = f"{stem}-{number:0{len(count)}d}-of-{count}.safetensors"
            message = f"is absent, while the names of the other shards count {int(count)}"
            findings.append(Finding("index", name, message, str(files.root), files.if_absent))
    return findings


def _merge(
    listings: Mapping[str, TensorListing], weight_map: Mapping[str, str]
) -> tuple[dict[str, TensorInfo], list[Finding]]:
    """All tensors by name; of one found twice, the copy in the file the index names is kept."""
    tensors: dict[str, TensorInfo] = {}
    findings = []
    for file, listing in listings.items():
        for name, info in listing.tensors.items():
            first = tensors.setdefault(name, info)
            if first is info:
                continue
            message = f"is both in {first.file.name} and in {file}"
            hint = "Remove the stale file, or the tensor from one of them."
            findings.append(Finding("duplicate", name, message, str(info.file.parent), hint))
            if weight_map.get(name) == file:
                tensors[name] = info
    return tensors, findings


def _index_disagreements(
    index_file: Path, weight_map: Mapping[str, str], listings: Mapping[str, TensorListing]
) -> list[Finding]:
    """Tensors that the index puts where they are not, and tensors it does not know."""
    where = str(index_file)
    holders: dict[str, str] = {}
    for file, listing in listings.items():
        for name in listing.tensors:
            holders.setdefault(name, file)
    findings = []
    for name, file in weight_map.items():
        if file not in listings or name in listings[file].tensors:
            continue
        message = f"is listed in {file}, which does not hold it"
        if name in holders:
            hint = f"It is in {holders[name]}: correct the index."
        else:
            spare = [other for other in listings[file].tensors if other not in weight_map]
            hint = f"Nor does another listed file: fetch it again.{did_you_mean(name, spare)}"
        findings.append(Finding("index", name, message, where, hint))
    for name, file in holders.items():
        if name not in weight_map:
            message = f"is in {file}, but the index does not list it"
            findings.append(Finding("index", name, message, where))
    return findings


def _left_aside(files: CheckpointFiles, names: Iterable[str], *, has_index: bool) -> list[Finding]:
    """Weight files of the folder that are not part of what was read."""
    folder, used = files.root, set(names)
    findings = []
    others = []
    for name in _matching(files, ("*.safetensors", "*.gguf", *PICKLE_PATTERNS)):
        if name in used:
            continue
        if has_index and fnmatch(name, "model*.safetensors"):
            message = f"lies beside {INDEX_NAME}, which does not list it"
            hint = "Remove whichever of the two is stale."
            findings.append(Finding("index", name, message, str(folder), hint))
        else:
            others.append(name)
    if others:
        subject = others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more"
        message = f"not read: the checkpoint is {', '.join(sorted(used)[:2])}"
        message += ", ..." if len(used) > 2 else ""
        findings.append(Finding("index", subject, message, str(folder), severity="note"))
    return findings


def _matching(files: CheckpointFiles, patterns: Iterable[str]) -> list[str]:
    """Names of the folder's files that match any of the patterns, sorted."""
    patterns = tuple(patterns)
    return [name for name in files.names() if any(fnmatch(name, p) for p in patterns)]
