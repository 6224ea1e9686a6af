"""A config field that changes what transformers computes changes this model alike, or is refused.

Every field of a tiny model's config is given other values, one at a time. Where the reference then
computes something else with the same weights, so must the conf: a field that it does not read would
otherwise be ignored without a word.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cases import Case, sweep
from tiny_checkpoints import make_checkpoint, model_class, reference_logits, token_ids

import assembler

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4  # of logits whose standard deviation another value may have raised
# Sizes, which tensors would contradict, and what is about training, output or other tasks.
PASSED_OVER = frozenset(
    {
        *("architectures", "model_type", "dtype", "vocab_size", "num_hidden_layers"),
        *("tie_word_embeddings", "use_cache", "output_attentions", "output_hidden_states"),
        *("is_encoder_decoder", "is_decoder", "add_cross_attention", "return_dict"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "id2label", "label2id"),
    }
)
ACTIVATIONS = ("relu", "silu", "gelu_new")

Keys = tuple[str, ...]


def one_row_of_each_class() -> list[Case]:
    rows: dict[str, Case] = {}
    for parameters in sweep():
        (case,) = parameters.values
        if "text_config" not in case.knobs:
            rows.setdefault(case.config_class, case)
    return list(rows.values())


@torch.no_grad()
@pytest.mark.parametrize("case", one_row_of_each_class(), ids=lambda case: case.name)
def test_a_live_field_is_read_or_refused(case: Case, tmp_path: Path) -> None:
    model = make_checkpoint(case, tmp_path)
    before, weights = reference_logits(model, token_ids()), model.state_dict()
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["architectures"] = [type(model).__name__]
    assert _distance(_ours(config, tmp_path), before) < TOLERANCE  # so refusals are of the change
    live, ignored = [], []
    for path, value in _fields(config):
        for other in _others(path[-1], value):
            changed = _replaced(config, path, other)
            theirs = _reference(case, changed, weights)
            if theirs is None or _distance(theirs, before) < 10 * TOLERANCE:
                continue
            live.append(".".join(path))
            try:
                ours = _ours(changed, tmp_path)
            except ValueError:
                break  # refused
            if _distance(ours, theirs) > TOLERANCE * max(1.0, float(theirs.std())):
                ignored.append(f"{'.'.join(path)}: {other}")
            break
    assert live
    assert ignored == []


def _fields(config: Mapping[str, Any], path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for name, value in config.items():
        if name in PASSED_OVER:
            continue
        if isinstance(value, Mapping):
            yield from _fields(value, (*path, name))
        else:
            yield (*path, name), value


def _others(name: str, value: Any) -> list[Any]:
    """Other values that a field might have."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value * 2, max(value - 1, 0)]
        case float():
            return [value * 1.37 + 0.11, value * 0.5]
        case str() if "act" in name:
            return [other for other in ACTIVATIONS if other != value]
        case "sigmoid" | "softmax":
            return [{"sigmoid": "softmax", "softmax": "sigmoid"}[value]]
        case None:
            return [True, 3, 0.7]
        case list():
            return [value[::-1]] if value[::-1] != value else []
    return []


def _replaced(config: Mapping[str, Any], path: Keys, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(dict(config))
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return changed


def _ours(config: dict[str, Any], folder: Path) -> torch.Tensor:
    (folder / "config.json").write_text(json.dumps(config))
    return assembler.logits(assembler.load_model(folder), token_ids())


def _reference(
    case: Case, config: dict[str, Any], weights: Mapping[str, torch.Tensor]
) -> torch.Tensor | None:
    """Logits of the same weights under another config; None if it cannot have these weights."""
    try:
        made = getattr(transformers, case.config_class).from_dict(copy.deepcopy(config))
        made._attn_implementation = case.attention
        model = model_class(case)(made).eval()
        model.load_state_dict(weights)
        logits = reference_logits(model, token_ids())
    except Exception:  # of whatever kind: values are tried blindly
        return None
    return logits if logits.isfinite().all() else None


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())
