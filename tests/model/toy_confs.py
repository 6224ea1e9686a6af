"""A folder with confs of toy blocks, and the calls that read and build them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx
from toy_blocks import TOYS

from assembler.model.build import build_model
from assembler.model.compose import load_spec
from assembler.model.spec import ModelSpec

BASE = """\
weight_map: toy
hidden_size: 8
vocab_size: 11
embed: {block: Embed}
layers:
  count: 2
  blocks:
    attn_norm: {block: RMSNorm, eps: 1e-5}
    attn: {block: Mix, heads: 2}
    mlp_norm: {block: RMSNorm, eps: 1e-5}
    mlp: {block: Feed, size: 16}
  wiring:
    - x = x + attn(attn_norm(x))
    - x = x + mlp(mlp_norm(x))
norm: {block: RMSNorm, eps: 1e-5}
lm_head: {block: Head}
wiring:
  - x = layers(embed(tokens))
  - logits = lm_head(norm(x))
"""


class Workspace:
    """A root with a conf folder that holds `base`; the current folder of the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("base", BASE)

    def write(self, name: str, text: str, root: Path | None = None) -> Path:
        """Write conf/<name>.yaml below `root` (default: this one)."""
        path = (root or self.root) / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def spec(
        self,
        text: str | None = None,
        config: Mapping[str, Any] | None = None,
        overrides: Sequence[str] = (),
        conf: str | Path = "my",
        roots: Sequence[Path] | None = None,
    ) -> ModelSpec:
        """The spec of conf `my` (written first if `text` is given) or of another conf."""
        if text is not None:
            self.write("my", text)
        roots = [self.root] if roots is None else roots
        return load_spec(conf, config, overrides, roots=roots, registry=TOYS)

    def base(self, *changes: tuple[str, str], **options: Any) -> ModelSpec:
        """The spec of the base conf with parts of its text replaced."""
        return self.spec(changed(*changes), **options)

    def build(self, spec: ModelSpec, **options: Any) -> fx.GraphModule:
        return build_model(spec, registry=TOYS, **options)


def changed(*changes: tuple[str, str]) -> str:
    """The base conf's text with replacements; each must be found once."""
    text = BASE
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the base conf"
        text = text.replace(old, new)
    return text
