"""`draft_architecture`: a checkpoint's headers and config.json -> the two YAMLs of a draft."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from assembler.drafting.anatomy import Anatomy, read_anatomy
from assembler.drafting.attempt import Attempt, Workbench
from assembler.drafting.inventory import take_inventory
from assembler.drafting.library import nearness, read_library
from assembler.drafting.matching import conf_for_the_same, draft_matches
from assembler.drafting.report import DraftReport
from assembler.drafting.texts import draft_texts, map_reasons, plain_error
from assembler.drafting.vocabulary import synonyms_of
from assembler.errors import CheckpointError, OptionError
from assembler.model.conf_files import PACKAGE_ROOT, conf_names, search_roots
from assembler.model.config_fields import ConfigFields
from assembler.weights.index import CheckpointIndex, read_checkpoint_index

CANDIDATES = 4  # of the nearest architectures, how many are tried
_NEAR = 0.45  # below this nothing is much like the checkpoint
_NAME = re.compile(r"[A-Za-z][\w-]*")
_PACKED = ("F8", "I8", "U8", "I32", "F4", "F6")


def draft_architecture(
    checkpoint: str | Path,
    out: str | Path = ".",
    name: str | None = None,
    *,
    parent: str | None = None,
    force: bool = False,
    search_path: Sequence[str | Path] = (),
) -> DraftReport:
    """Write `conf/<name>.yaml` and `weight_maps/<name>.yaml` below `out` for a checkpoint.

    Args:
        checkpoint: folder or .safetensors file with its config.json, or Hub id; no weight is read.
        out: the folder that gets conf/ and weight_maps/.
        name: of both files; None: the config's model_type.
        parent: the architecture to extend; None: the nearest one.
        force: write over files that are there.
        search_path: more folders that hold conf/ and weight_maps/.

    Returns:
        What was written, what of it is a guess, and what is left to do.

    Raises:
        CheckpointError: there is no config.json, no header, or nothing a draft could be made of.
        OptionError: the name or the folder cannot be used.
    """
    index = open_index(checkpoint)
    roots = search_roots(search_path)
    name = _checked_name(name, index.config, roots)
    out = Path(out).expanduser()
    files = (out / "conf" / f"{name}.yaml", out / "weight_maps" / f"{name}.yaml")
    _check_free(files, force)
    with tempfile.TemporaryDirectory(prefix="assembler-draft-") as folder:
        best = best_attempt(index, name, roots, Path(folder), parent=parent)
    local = Path(checkpoint).expanduser()  # the conf may be read from any folder
    around = search_roots([out, *search_path]) if out.is_dir() else roots
    taken = conf_for_the_same(draft_matches(best.config), files[0], around)
    texts = draft_texts(best, str(local.resolve() if local.exists() else checkpoint), name, taken)
    _write(dict(zip(files, texts, strict=True)), out)
    return _report(best, files, str(checkpoint), name, taken[1] if taken else None)


def open_index(checkpoint: str | Path) -> CheckpointIndex:
    """The headers of a checkpoint that a draft can be made of.

    Raises:
        CheckpointError: it is GGUF, quantised, or has no config.json or no tensors.
    """
    if not str(checkpoint):
        raise OptionError("which checkpoint? Pass checkpoint=FOLDER or a Hub id")
    index = read_checkpoint_index(checkpoint)
    where = index.root
    if index.format == "gguf":
        raise CheckpointError(
            f"{where}: GGUF has names of its own and no config.json. Draft from the safetensors "
            "release of the same model"
        )
    if not index.config:
        raise CheckpointError(
            f"{where}: there is no config.json, which a draft reads its sizes and names from. Copy "
            "it from the original model"
        )
    if not index.tensors:
        raise CheckpointError(f"{where}: no tensors in its safetensors files")
    packed = [
        i.name for i in index.tensors.values() if i.dtype.startswith(_PACKED) and len(i.shape) > 1
    ]
    if index.config.get("quantization_config") or packed:
        raise CheckpointError(
            f"{where}: is quantised, and the shapes of packed tensors do not tell what a model "
            "looks like. Draft from the release that is not; the draft then serves both"
        )
    return index


def best_attempt(
    index: CheckpointIndex,
    name: str,
    roots: Sequence[Path],
    folder: Path,
    *,
    parent: str | None = None,
    without: Collection[str] = (),
) -> Attempt:
    """Draft from each of the nearest architectures, and take the draft that fits best.

    Args:
        folder: gets the files of the attempts.
        parent: try this one only.
        without: leave these architectures out, with all that builds on them.
    """
    anatomy = anatomy_of(index)
    library = read_library(roots, without, parent)
    config = text_fields(index.config)
    ranked = sorted(
        ((nearness(shipped, anatomy, config, library), shipped) for shipped in library),
        key=lambda pair: (-pair[0], pair[1].name),
    )
    best: Attempt | None = None
    for near, shipped in ranked[:CANDIDATES]:
        if best is not None and best.beats(shipped, near):
            continue
        bench = Workbench(index, anatomy, roots, folder / shipped.name, name)
        found = bench.attempt(shipped, near)
        best = found if best is None else min(best, found, key=lambda attempt: attempt.order)
    assert best is not None, "a library is not empty"
    return best


def anatomy_of(index: CheckpointIndex) -> Anatomy:
    """What the tensors of a checkpoint are for."""
    fields = ConfigFields(index.config)
    layers, hidden = (_number(fields, name) for name in ("num_hidden_layers", "hidden_size"))
    anatomy = read_anatomy(take_inventory(index.tensors, layers), hidden)
    if not anatomy.inventory.layer:
        raise CheckpointError(
            f"{index.root}: no tensors of layers, such as model.layers.0.mlp.up_proj.weight, among "
            f"its {len(index.tensors)}: is it the checkpoint of a language model?"
        )
    return anatomy


def text_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the language model."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return dict(config)
    outer = {key: config[key] for key in ("architectures", "model_type") if key in config}
    return {**text, **outer}


def _report(
    best: Attempt, files: tuple[Path, Path], checkpoint: str, name: str, matched_by: str | None
) -> DraftReport:
    plan = best.map.plan if best.map else None
    guesses = [(f"conf {'.'.join(path)}", why) for path, why in best.sheet.why.items() if why]
    guesses += [(f"map {'.'.join(path[1:])}", why) for path, why in map_reasons(best).items()]
    totals = plan.totals if plan else None
    count = len(best.index.tensors)
    return DraftReport(
        name=name,
        parent=best.parent.name,
        likeness=best.nearness,
        near=best.nearness >= _NEAR,
        conf=files[0],
        weight_map=files[1],
        checkpoint=checkpoint,
        tensors=(totals.tensors_covered if totals else 0, count),
        parameters=(totals.parameters_filled, totals.parameters) if totals else (0, 0),
        findings=_findings(best, files[1]),
        guesses=tuple(guesses),
        unplaced=tuple(best.unplaced),
        unknown=best.anatomy.unknown,
        matched_by=matched_by,
    )


def _findings(best: Attempt, weight_map: Path) -> tuple[str, ...]:
    """What is left to do, in the files of the checkpoint too.

    The map of the attempt, which has gone, is named as it was written.
    """
    if not best.map:  # no plan, which would have what is wrong with the headers
        wrong = [str(e) for e in best.index.findings if e.severity == "error"]
        return (*wrong, plain_error(best))
    attempted = re.compile(rf"[^\s(]*assembler-draft-[^\s)]*/{re.escape(weight_map.name)}(:\d+)?")
    return tuple(attempted.sub(lambda _: str(weight_map), str(e)) for e in best.map.plan.errors)


def _checked_name(name: str | None, config: Mapping[str, Any], roots: Sequence[Path]) -> str:
    known = conf_names(roots)
    if name is None:
        kind = text_fields(config).get("model_type")
        name = re.sub(r"\W+", "_", str(kind or "model")).strip("_").lower() or "model"
        return f"{name}_draft" if name in known else name
    if name in known and (PACKAGE_ROOT / "conf" / f"{name}.yaml").is_file():
        raise OptionError(f"name={name}: an architecture ships by that name; choose another")
    if not _NAME.fullmatch(name):
        raise OptionError(f"name={name}: takes letters, digits, _ and -, and begins with a letter")
    return name


def _check_free(files: Sequence[Path], force: bool) -> None:
    taken = [str(path) for path in files if path.exists()]
    if taken and not force:
        raise OptionError(
            f"{' and '.join(taken)}: there already. Another name=..., or force=true to write over"
        )


def _write(texts: Mapping[Path, str], out: Path) -> None:
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    except OSError as error:
        raise OptionError(f"out={out}: cannot be written: {error.strerror}") from None


def _number(fields: ConfigFields, name: str) -> int | None:
    values = (fields.get(known) for known in synonyms_of(name))
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)
