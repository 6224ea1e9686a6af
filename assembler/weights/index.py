"""A checkpoint as its headers describe it: every tensor, the config, and what is wrong with them.

`read_checkpoint_index` is the only way in, for a folder of safetensors, a single file, GGUF, or a
repository of the Hub, whose weights then stay there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from assembler.errors import CheckpointError, did_you_mean
from assembler.weights.checkpoint_files import CheckpointFiles, LocalFiles
from assembler.weights.collector import collector_paused
from assembler.weights.finding import Finding
from assembler.weights.gguf_index import read_gguf, read_gguf_folder
from assembler.weights.safetensors_index import read_safetensors_file, read_safetensors_folder
from assembler.weights.source import open_remote, resolve_checkpoint
from assembler.weights.tensor_data import MappedFiles
from assembler.weights.tensor_info import TensorInfo, TensorListing

__all__ = ["CheckpointIndex", "TensorInfo", "read_checkpoint_index"]


@dataclass(frozen=True)
class CheckpointIndex:
    """All that is known of a checkpoint before any weight is read."""

    root: Path  # the folder or the file it was read from
    format: Literal["safetensors", "gguf"]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]  # config.json ({} if there is none); for GGUF the raw metadata
    metadata: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()
    remote: bool = False  # the headers were read on the Hub: there are no weights to read
    files: MappedFiles = field(default_factory=MappedFiles, repr=False, compare=False)

    def read(self, name: str) -> torch.Tensor:
        """The values of tensor `name`, on the CPU, in torch's order of dimensions.

        Plain types come in their own dtype as copy-on-write views of the mapped file (no copy);
        quantised GGUF tensors come dequantised to float32. Maps stay open until `close`.

        Raises CheckpointError for an unknown name, an unsupported type, a truncated file, or
        weights that are not on this machine.
        """
        info = self.tensors.get(name)
        if info is None:
            near = did_you_mean(name, self.tensors)
            raise CheckpointError(f"{self.root}: has no tensor '{name}'.{near}")
        return self.read_info(info)

    def read_info(self, info: TensorInfo) -> torch.Tensor:
        """`read` for what a plan's pieces read: a weight of two tensors comes dequantised."""
        self.require_weights()
        return self.files.read(info)

    def require_weights(self) -> None:
        """Raise CheckpointError unless the weights are on this machine."""
        if self.remote:
            raise CheckpointError(
                f"{self.root}: only its headers were read, on the Hub. Load it by its id, or "
                "download it and pass the folder."
            )

    def close(self) -> None:
        """Let go of the mapped files. Tensors already read stay valid."""
        self.files.close()


def read_checkpoint_index(checkpoint: str | Path) -> CheckpointIndex:
    """Read the headers (and nothing else) of a checkpoint.

    A path is a folder in the layout of the Hugging Face hub, a `.safetensors` file (with the
    `config.json` beside it, if any) or a `.gguf` file. A string may also be what
    `resolve_checkpoint` takes; of a Hub id nothing is downloaded but JSON files and headers, and
    the index is `remote`. What a report can list becomes a finding; CheckpointError is raised
    where no list of tensors can be made at all.
    """
    path = checkpoint
    if isinstance(checkpoint, str):
        files = open_remote(checkpoint)
        if files is not None:
            with collector_paused():
                return _folder(files)
        path = resolve_checkpoint(checkpoint)
    with collector_paused():
        return _read(Path(path))


def _read(path: Path) -> CheckpointIndex:
    if path.is_dir():
        has_safetensors = any(path.glob("*.safetensors*"))
        if has_safetensors or not any(path.glob("*.gguf")):
            return _folder(LocalFiles(path))
        return _gguf(path, read_gguf_folder(path))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such folder or file.")
    if path.suffix == ".safetensors":
        config = _read_config(LocalFiles(path.parent))
        listing = read_safetensors_file(path)
        return CheckpointIndex(
            path, "safetensors", listing.tensors, config, listing.metadata, listing.findings
        )
    if path.suffix == ".gguf":
        return _gguf(path, read_gguf(path))
    raise CheckpointError(
        f"{path}: is no checkpoint. Pass a folder, a .safetensors file or a .gguf file."
    )


def _folder(files: CheckpointFiles) -> CheckpointIndex:
    listing = read_safetensors_folder(files)
    return CheckpointIndex(
        root=files.root,
        format="safetensors",
        tensors=listing.tensors,
        config=_read_config(files),
        metadata=listing.metadata,
        findings=listing.findings,
        remote=not isinstance(files, LocalFiles),
    )


def _gguf(path: Path, listing: TensorListing) -> CheckpointIndex:
    metadata = listing.metadata
    return CheckpointIndex(path, "gguf", listing.tensors, metadata, metadata, listing.findings)


def _read_config(files: CheckpointFiles) -> dict[str, Any]:
    """The object in `config.json`; empty without one, since a model YAML may need none of it."""
    if not files.has("config.json"):
        return {}
    file = files.root / "config.json"
    content = files.read("config.json")
    try:
        config = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: holds no JSON object but a {type(config).__name__}.")
    return config
