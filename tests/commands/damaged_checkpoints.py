"""Checkpoints damaged in one way each, and what is said about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_llama import Weights, change_config, change_tensors


def shards(folder: Path, change: Callable[[dict[str, Weights]], object] = lambda s: None) -> None:
    """Deal the tensors out over two files with an index, then `change` what the files hold."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    files: dict[str, Weights] = {name: {} for name in names}
    for number, name in enumerate(weights):
        files[names[number % 2]][name] = weights[name]
    index = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    change(files)
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:count])


def missing(folder: Path) -> None:
    change_tensors(folder, lambda w: w.pop("model.layers.1.mlp.down_proj.weight"))


def misspelt(folder: Path) -> None:
    change_tensors(folder, lambda w: w.update({"model.nrom.weight": w.pop("model.norm.weight")}))


def extra(folder: Path) -> None:
    change_tensors(folder, lambda w: w.update({"audio_tower.weight": torch.zeros(2)}))


def misshapen(folder: Path) -> None:
    change_tensors(folder, lambda w: w.update({"model.norm.weight": torch.zeros(31)}))


def half_merged(folder: Path) -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 2)]
    change_tensors(folder, lambda w: [w.pop(name) for name in names])


def wrong_type(folder: Path) -> None:
    change_tensors(folder, lambda w: w.update({"model.norm.weight": torch.zeros(32).char()}))


def duplicate(folder: Path) -> None:
    def both(files: dict[str, Weights]) -> None:
        first, second = files.values()
        first["lm_head.weight"] = second["lm_head.weight"] = {**first, **second}["lm_head.weight"]

    shards(folder, both)


def absent_shard(folder: Path) -> None:
    shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def other_prefix(folder: Path) -> None:
    change_tensors(folder, lambda w: w.update({f"wrap.{name}": w.pop(name) for name in list(w)}))


def other_config(folder: Path) -> None:
    change_config(folder, intermediate_size=28)


def tied_in_words_only(folder: Path) -> None:
    change_tensors(folder, lambda w: w.pop("lm_head.weight"))


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    cut(file, file.stat().st_size - 100)


Damage = Callable[[Path], object]

# Those that coverage can report on: the damage, a finding, the last line ("": not compared).
FINDINGS: dict[str, tuple[Damage, str, str]] = {
    "missing": (
        missing,
        r"missing: layers\.1\.mlp\.down\.weight: the checkpoint has no "
        r"model\.layers\.1\.mlp\.down_proj\.weight",
        "29/29 tensors, 100 % of bytes, 20/21 parameters: 1 finding",
    ),
    "misspelt": (
        misspelt,
        r"missing: norm\.weight: .*Did you mean 'model\.nrom\.weight'\?.*"
        r"unclaimed: model\.nrom\.weight: .*Did you mean 'model\.norm\.weight'\?",
        "29/30 tensors, 99.9 % of bytes, 20/21 parameters: 2 findings",
    ),
    "extra": (
        extra,
        r"unclaimed: audio_tower\.weight: no rule uses it",
        "30/31 tensors, 99.9 % of bytes, 21/21 parameters: 1 finding",
    ),
    "mis-shaped": (
        misshapen,
        r"shape: model\.norm\.weight: has the shape \[31\], but norm\.weight needs \[32\]",
        "29/30 tensors, 99.9 % of bytes, 20/21 parameters: 1 finding",
    ),
    "half-merged": (
        half_merged,
        r"half_merged: layers\.\{0,2\}\.mlp\.gate_up\.weight: has gate but not up",
        "28/28 tensors, 100 % of bytes, 19/21 parameters: 1 finding",
    ),
    "wrong type": (
        wrong_type,
        r"dtype: model\.norm\.weight: is stored as I8",
        "29/30 tensors, 99.9 % of bytes, 20/21 parameters: 1 finding",
    ),
    "duplicate": (
        duplicate,
        r"duplicate: lm_head\.weight: is both in model-00001-of-00002\.safetensors and in "
        r"model-00002-of-00002\.safetensors",
        "30/30 tensors, 100 % of bytes, 21/21 parameters: 1 finding",
    ),
    "absent shard": (
        absent_shard,
        r"index: model-00002-of-00002\.safetensors: is listed as the file of 15 tensors .*absent",
        "",
    ),
    "another prefix": (
        other_prefix,
        r"every name of the checkpoint stands under 'wrap\.' .*Add 'wrap\.' to `prefixes`",
        "",
    ),
    "another config": (
        other_config,
        r"shape: model\.layers\.\{0-2\}\.mlp\.down_proj\.weight: has the shape \[32, 24\], but "
        r"layers\.\{0-2\}\.mlp\.down\.weight needs \[32, 28\].*intermediate_size = 28",
        "",
    ),
    "no head": (
        tied_in_words_only,
        r"missing: lm_head\.weight: .*config should say tie_word_embeddings",
        "29/29 tensors, 100 % of bytes, 20/21 parameters: 1 finding",
    ),
    "truncated": (
        truncated,
        r"truncated: model\.safetensors: the header describes .* bytes, the file has",
        "30/30 tensors, 100 % of bytes, 21/21 parameters: 1 finding",
    ),
}


# Those without a list of tensors, or without a model to compare it with.
UNREADABLE: dict[str, tuple[Damage, str]] = {
    "cut in the header": (
        lambda folder: cut(folder / "model.safetensors", 700),
        r"model\.safetensors: ends at byte 700, inside its header .* fetch it again",
    ),
    "empty file": (
        lambda folder: cut(folder / "model.safetensors", 0),
        r"model\.safetensors: ends at byte 0",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"copy: holds no \*\.safetensors and no \.gguf file",
    ),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        r"copy: there is no config\.json, .*Copy it from the original model",
    ),
    "broken config": (
        lambda folder: cut(folder / "config.json", 20),
        r"config\.json: cannot be read as JSON",
    ),
    "unknown architecture": (
        lambda folder: change_config(folder, architectures=["Lama4Causal"], model_type="lama"),
        r"no conf matches this checkpoint \(Lama4Causal, lama\)\..* Did you mean 'llama'.*\? "
        r"Available: .*qwen3.*\. Pass conf=NAME",
    ),
    "config without a field": (
        lambda folder: change_config(folder, rms_norm_eps=None),
        r"rms_norm_eps",
    ),
    "config with a wrong field": (
        lambda folder: change_config(folder, hidden_act="silou"),
        r"silou.*Did you mean 'silu'",
    ),
}
