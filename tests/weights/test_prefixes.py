"""Checkpoints as transformers writes them under other names: each loads and is written back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging
from weights_harness import decoder, kinds, save, tensors, write_map

import assembler
from assembler.errors import WeightMapError
from assembler.exporting import ExportSettings, export_checkpoint
from assembler.loading import assemble
from assembler.weights.naming import Naming
from assembler.weights.plan import plan_load

logging.disable_progress_bar()

_TEXT = {
    "vocab_size": 96,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.dim() == 1 else 0.0, 0.2)
    return model.eval()


def gpt2(**options: object) -> torch.nn.Module:
    config = GPT2Config(vocab_size=96, n_embd=24, n_layer=2, n_head=4, n_positions=64, **options)
    return randomised(GPT2LMHeadModel(config))


def gemma3(tied: bool) -> torch.nn.Module:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config={**_TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
        vision_config=vision,
        mm_tokens_per_image=1,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
        tie_word_embeddings=tied,
    )
    config.text_config.tie_word_embeddings = tied
    return randomised(Gemma3ForConditionalGeneration(config))


def rename(folder: Path, changes: dict[str, str]) -> None:
    """Give tensors other beginnings; the first that fits a name counts."""
    file = folder / "model.safetensors"
    renamed = {}
    for name, value in load_file(file).items():
        old = next((old for old in changes if name.startswith(old)), "")
        renamed[changes.get(old, "") + name.removeprefix(old)] = value.clone()
    save_file(renamed, file, metadata={"format": "pt"})


def check(model: torch.nn.Module, folder: Path, naming: str) -> None:
    """The folder loads through `naming`, computes what transformers does, and is written back."""
    found = assemble(folder)
    assert not found.plan.findings and str(found.plan.naming) == naming
    ids = torch.arange(14).view(2, 7)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        ours = assembler.logits(assembler.load_model(folder), ids)
    torch.testing.assert_close(ours, expected, atol=3e-5, rtol=1e-4)
    out = folder.parent / "out"
    export_checkpoint(found, ExportSettings(out))
    written, before = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    assert written.keys() == before.keys()
    assert all(torch.equal(written[name], before[name]) for name in before)


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_as_transformers_saves_it(tied: bool, tmp_path: Path):
    torch.manual_seed(0)
    model = gpt2(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "in")
    check(model, tmp_path / "in", "")


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_as_it_was_published(tied: bool, tmp_path: Path):
    torch.manual_seed(0)
    model = gpt2(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "in")
    rename(tmp_path / "in", {"transformer.": ""})
    check(model, tmp_path / "in", "transformer → nothing")


GEMMA3 = {
    "as transformers saves it": ({}, "language_model."),
    "as transformers works with it": (
        {"language_model.model.": "model.language_model.", "language_model.": ""},
        "model → model.language_model",
    ),
    "with a head at the root": (
        {"language_model.lm_head": "lm_head"},
        "model → language_model.model",
    ),
    "without the head's module": (
        {"language_model.model.": "language_model.", "language_model.lm_head": "lm_head"},
        "model → language_model",
    ),
}


@pytest.mark.parametrize("layout", GEMMA3)
@pytest.mark.parametrize("tied", [True, False])
def test_a_multimodal_gemma3(layout: str, tied: bool, tmp_path: Path):
    torch.manual_seed(0)
    model = gemma3(tied)
    model.save_pretrained(tmp_path / "in")
    changes, naming = GEMMA3[layout]
    rename(tmp_path / "in", changes)
    if tied and "head at the root" in layout:
        naming = "language_model."  # without a head there is nothing to tell them apart
    check(model, tmp_path / "in", naming)
    left = assemble(tmp_path / "in").plan.ignored
    assert left and all("not part of the text model" in item.reason for item in left)


def test_a_llama_without_its_wrapper(tmp_path: Path):
    torch.manual_seed(0)
    model = randomised(LlamaForCausalLM(LlamaConfig(**_TEXT, tie_word_embeddings=True)))
    model.save_pretrained(tmp_path / "in")
    rename(tmp_path / "in", {"model.": ""})
    check(model, tmp_path / "in", "model → nothing")


def test_roots_are_replaced_and_given_back():
    naming = Naming(roots=(("model.norm", "final"), ("model", "a.b"), ("gone", "")))
    pairs = {
        "model.norm.weight": "final.weight",
        "model.layers.3.x": "a.b.layers.3.x",
        "modelling.x": "modelling.x",
        "gone.y": "y",
        "model": "a.b",
    }
    assert {name: naming.on_disk(name) for name in pairs} == pairs
    back = {theirs: naming.in_map(theirs) for theirs in pairs.values()}
    assert back["a.b.layers.3.x"] == "model.layers.3.x" and back["final.weight"]
    assert back["y"] == "gone.y"


_ROOTS = st.lists(st.sampled_from(["a", "b", "a.b", "c.d"]), unique=True, min_size=1, max_size=4)


@settings(derandomize=True, deadline=None, database=None)
@given(_ROOTS, st.permutations(["x", "y", "x.z", "w.v"]), st.text("abcd.", max_size=6))
def test_names_find_their_way_back(own: list[str], theirs: list[str], rest: str):
    """Roots that become different roots are undone."""
    pairs = [
        (root, f"{other}{n}") for n, (root, other) in enumerate(zip(own, theirs, strict=False))
    ]
    naming = Naming(roots=tuple(sorted(pairs, key=lambda pair: -len(pair[0]))))
    for root in own:
        name = f"{root}.q{rest}"
        assert naming.in_map(naming.on_disk(name)) == name


def test_a_finding_names_the_tensor_as_the_checkpoint_would(tmp_path: Path):
    text = write_map.__defaults__[0].replace('"language_model."', "{model: m.text}")
    weights = {name.replace("model.", "m.text."): value for name, value in tensors().items()}
    del weights["m.text.norm.weight"]
    weights["m.text.odd.weight"] = torch.zeros(3)
    plan = plan_load(write_map(tmp_path, text), decoder(), save(tmp_path, weights))
    assert kinds(plan) == [("missing", "norm.weight"), ("unclaimed", "m.text.odd.weight")]
    assert "the checkpoint has no m.text.norm.weight" in str(plan.errors[0])


@pytest.mark.parametrize(
    "entry, message",
    [
        ("{modle: x}", "no source of the map begins with 'modle'. Did you mean 'model'"),
        ("{model: x.}", "a root is the beginning of names, without its last dot"),
        ("{model: 3}", "a root is the beginning of names"),
        ("{}", "a prefix is '', ends with '.', or is a mapping of roots"),
        ("model", "a prefix is '', ends with '.', or is a mapping of roots"),
    ],
)
def test_prefixes_that_make_no_sense(entry: str, message: str, tmp_path: Path):
    with pytest.raises(WeightMapError, match=message):
        write_map(tmp_path, f"prefixes: [{entry}]\nweights: {{norm: model.norm}}\n")
