"""Recorded releases as a command finds them: config.json, right headers, and holes for weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from published_releases import read_release

import assembler
from assembler.loading import Assembly
from assembler.weights.plan import plan_load
from assembler.weights.weight_map import load_weight_map


def write_release(name: str, folder: Path) -> Path:
    """Write a release into a folder; the weights take no room on the disk."""
    release = read_release(name)
    header = {
        info.name: {
            "dtype": info.dtype,
            "shape": info.shape,
            "data_offsets": [info.offset, info.end],
        }
        for info in release.tensors.values()
    }
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + max(info.end for info in release.tensors.values()))
    (folder / "config.json").write_text(json.dumps(dict(release.config)))
    return folder


def assembled(name: str) -> Assembly:
    """A release assembled without its equations rewritten, as `show_model` does it."""
    release = read_release(name)
    spec = assembler.load_spec(release.conf, release.config)
    model = assembler.build_model(spec, rewrites="none")
    index, weight_map = release.index(), load_weight_map(spec.weight_map)
    plan = plan_load(weight_map, model, index)
    return Assembly(spec, model, index.root, release.config, index, weight_map, plan)
