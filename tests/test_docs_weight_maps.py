"""docs/weight-maps.md: its tutorial is followed, its examples load, its tables are complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import save_file
from transformers import FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
from weight_map_examples import EXAMPLES, build

import assembler
from assembler import coverage, explain
from assembler.loading import assemble
from assembler.weights.execute import execute_plan, materialize
from assembler.weights.export_plan import export_plan
from assembler.weights.finding import FindingKind
from assembler.weights.gguf_config import FIELD_FORMS
from assembler.weights.index import read_checkpoint_index
from assembler.weights.map_options import ITEM_READERS, PER_WORDS, ROPE_KEYS
from assembler.weights.map_rules import RULE_KEYS
from assembler.weights.map_schema import weight_map_schema
from assembler.weights.plan import plan_load
from assembler.weights.weight_map import MAP_KEYS, SPLIT_KINDS, load_weight_map
from assembler.weights.yaml_marks import load_marked

logging.disable_progress_bar()

PAGE = (Path(__file__).parents[1] / "docs" / "weight-maps.md").read_text("utf-8")
# (language, text) of every fenced block, in order; a YAML's first line is a comment, its title.
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
YAML = {text.split("\n")[0].removeprefix("# "): text for kind, text in FENCED if kind == "yaml"}
SHOWN = [text for kind, text in FENCED if not kind]
TUTORIAL = ("conf/falcon.yaml", "weight_maps/falcon.yaml", "line of weight_maps/falcon.yaml")
OTHERS = ("extends", "gguf")


def titled(title: str) -> str:
    [text] = [text for name, text in YAML.items() if name.startswith(title)]
    return text


def test_every_example_is_run():
    assert len(YAML) == sum(kind == "yaml" for kind, _ in FENCED), "two examples have one title"
    examples = {name for name in YAML if not name.startswith(TUTORIAL)}
    assert examples == {*EXAMPLES, *OTHERS}


# The tutorial -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder, with the conf of the page and a Falcon checkpoint."""
    home = tmp_path_factory.mktemp("falcon")
    for name in ("conf", "weight_maps"):
        (home / name).mkdir()
    (home / "conf" / "falcon.yaml").write_text(titled("conf/falcon.yaml"))
    config = FalconConfig(
        vocab_size=96,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_kv_heads=2,
        new_decoder_architecture=True,
        alibi=False,
        bias=False,
        max_position_embeddings=64,
        layer_norm_epsilon=2e-3,
    )
    torch.manual_seed(0)
    model = FalconForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if re.search(r"ln_\w+\.weight", name) else 0.0, 0.25)
    model.save_pretrained(home / "checkpoint")
    return home


@pytest.fixture
def write_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Writes weight_maps/falcon.yaml as it stands after a step."""
    monkeypatch.chdir(folder)

    def write(step: int) -> None:
        text = titled(f"weight_maps/falcon.yaml, step {min(step, 2)}").split("\n", 1)[1]
        if step > 2:
            line = titled(f"line of weight_maps/falcon.yaml, step {step}").split("\n", 1)[1]
            text, count = re.subn(r"^    attn\.qkv:.*\n", lambda _: line, text, flags=re.M)
            assert count == 1
        (folder / "weight_maps" / "falcon.yaml").write_text(text)

    return write


def report(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The findings and totals below the table of the coverage report, unwrapped."""
    capsys.readouterr()
    coverage.main(["checkpoint=checkpoint"])
    text = capsys.readouterr().out.split("\n \n")[-1]
    lines = re.split(r"\n(?=[a-z_]+: |\d+/)", text.rstrip())
    return [" ".join(line.split()) for line in lines if not line.startswith(("tied", " "))]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_the_tutorial_shows_what_coverage_says(
    step: int, write_step: Callable[[int], None], capsys: pytest.CaptureFixture[str]
):
    write_step(step)
    # The first step shows both sides, each in a block; the others one block each.
    shown = SHOWN[0] + SHOWN[1] if step == 1 else SHOWN[min(step, 3)]
    expected = shown.splitlines()
    found = report(capsys)[-len(expected) :]
    # The map stands on the page below a line of comment.
    assert [re.sub(r"yaml:(\d+)", "yaml:N", line) for line in found] == [
        re.sub(r"yaml:(\d+)", "yaml:N", line) for line in expected
    ]


def test_the_story_of_a_tensor_is_the_one_told(
    write_step: Callable[[int], None], capsys: pytest.CaptureFixture[str]
):
    write_step(4)
    [shown] = [text for text in SHOWN if text.startswith("layers.1.attn.qkv.k: ")]
    capsys.readouterr()
    explain.main(["checkpoint=checkpoint", "tensor=layers.1.attn.qkv.k", "tp=2"])
    told = capsys.readouterr().out.replace("checkpoint/", "path/to/falcon/")
    number = r"(yaml:\d+|bytes .*)"  # the map stands below a comment, the header may grow
    assert re.sub(number, "N", told) == re.sub(number, "N", shown)


def test_the_tutorial_ends_with_equal_logits(
    write_step: Callable[[int], None], capsys: pytest.CaptureFixture[str]
):
    [code] = [text for kind, text in FENCED if kind == "python"]
    code = code.replace("path/to/falcon", "checkpoint")
    errors = []
    for step in (3, 4):
        write_step(step)
        torch.manual_seed(1)
        capsys.readouterr()
        exec(compile(code, "docs/weight-maps.md", "exec"), {})
        errors.append(float(capsys.readouterr().out))
    assert errors[0] > 1 and errors[1] < 3e-5


def test_a_map_named_by_its_path(folder: Path, write_step: Callable[[int], None]):
    write_step(4)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "map.yaml").write_text((folder / "weight_maps" / "falcon.yaml").read_text())
    conf = titled("conf/falcon.yaml").replace("weight_map: falcon", "weight_map: ./map.yaml")
    (elsewhere / "mine.yaml").write_text(conf)
    found = assemble(folder / "checkpoint", "elsewhere/mine.yaml")
    assert found.weight_map.files[0].samefile(elsewhere / "map.yaml")
    assert not found.plan.findings


# The reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", EXAMPLES)
def test_example(title: str, tmp_path: Path):
    torch.manual_seed(0)
    example = EXAMPLES[title]()
    map_file = tmp_path / "example.yaml"
    map_file.write_text(YAML[title])
    Draft202012Validator(weight_map_schema()).validate(load_marked(map_file).data)
    save_file({k: v.contiguous() for k, v in example.disk.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(example.config))
    index, model = read_checkpoint_index(tmp_path), build(example.model)
    plan = plan_load(load_weight_map(map_file), model, index)
    assert not plan.findings
    assert {item.info.name for item in plan.ignored} == set(example.ignored)
    assert plan.totals.tensors_covered == len(example.disk)
    dtype = torch.bfloat16 if title == "dtype" else torch.float32
    materialize(model, "cpu", dtype, plan.dtypes)
    execute_plan(plan, model, index)
    loaded = dict(model.named_parameters())
    assert loaded.keys() == example.expected.keys()
    for name, expected in example.expected.items():
        torch.testing.assert_close(loaded[name].detach(), expected, rtol=0, atol=0, msg=name)


def test_what_an_export_cannot_undo(tmp_path: Path):
    torch.manual_seed(0)
    lossy, refused = set(), set()
    for title in EXAMPLES:
        example, folder = EXAMPLES[title](), tmp_path / title
        folder.mkdir()
        (folder / "example.yaml").write_text(YAML[title])
        save_file({k: v.contiguous() for k, v in example.disk.items()}, folder / "a.safetensors")
        (folder / "config.json").write_text(json.dumps(example.config))
        weight_map, index = load_weight_map(folder / "example.yaml"), read_checkpoint_index(folder)
        naming = plan_load(weight_map, build(example.model), index).naming
        plan = export_plan(weight_map, build(example.model), naming, like=index)
        lossy |= {title} if plan.losses else set()
        refused |= {title} if not all(loss.rounds for loss in plan.losses) else set()
    rounding = {"affine and negative_exp", "quantization", "dequantize"}
    assert lossy == {"slice and pad", *rounding} and refused == {"slice and pad"}


def test_extends(tmp_path: Path):
    (tmp_path / "weight_maps").mkdir()
    (tmp_path / "weight_maps" / "llama.yaml").write_text(YAML["extends"])
    found = load_weight_map("llama", [tmp_path])  # one's own, laid over the shipped one
    rules = {rule.target.text: rule for rule in found.rules}
    shipped = {rule.target.text: rule for rule in load_weight_map("llama").rules}
    added = {"layers.{i}.attn.q_norm", "layers.{i}.attn.k_norm"}
    assert rules.keys() == (shipped.keys() | added) - {"lm_head"}
    [source] = rules["layers.{i}.mlp.gate_up"].sources
    assert source.pattern.text == "model.layers.{i}.mlp.gate_up_proj"
    assert source.parts == ("gate", "up")
    assert rules["layers.{i}.mlp.gate_up"].tp == "column"
    assert found.prefixes == load_weight_map("llama").prefixes and found.ignore


def test_gguf(tmp_path: Path):
    (tmp_path / "example.yaml").write_text(YAML["gguf"])
    translate = load_weight_map(tmp_path / "example.yaml").translate_config
    metadata = {"llama.block_count": 3, "tokenizer.ggml.tokens": ["a", "b"]}
    assert translate(metadata, {"token_embd.weight": None}) == {
        "model_type": "llama",
        "num_hidden_layers": 3,
        "vocab_size": 2,
        "tie_word_embeddings": True,
    }
    more = {"llama.vocab_size": 5, "llama.rope.scaling.factor": 4.0}
    found = translate({**metadata, **more}, {"output.weight": None})
    assert (found["vocab_size"], found["tie_word_embeddings"]) == (5, False)
    assert found["rope_scaling"] == {"factor": 4.0}


def column(heading: str, place: int = 0) -> Iterator[str]:
    """The code words in the first column of a table (the `place`-th) below a heading."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGE, flags=re.M)[1]
    table = re.findall(r"(?:^\|.*\n)+", section, re.M)[place]
    for row in table.splitlines()[2:]:
        yield from re.findall(r"`([^`]+)`", row.split("|")[1])


def test_the_tables_are_complete():
    assert set(column("Keys")) == set(MAP_KEYS)
    assert list(column("Options")) == list(ITEM_READERS)  # in the order in which they act
    own_sections = {"from", "any", "fill", "dtype", "optional"}
    assert set(RULE_KEYS) == set(ITEM_READERS) | own_sections
    assert all(f"\n### `{name}`\n" in PAGE for name in own_sections - {"from", "optional"})
    assert set(column("`per`")) == set(PER_WORDS)
    assert list(column("`rope`")) == list(ROPE_KEYS)
    assert list(column("`tp`")) == list(SPLIT_KINDS)
    forms = {word for text in column("GGUF") for word in re.findall(r"^\{(\w+):", text)}
    assert forms == set(FIELD_FORMS)
    assert set(column("What the checker finds")) == set(get_args(FindingKind))


def test_the_links_lead_somewhere():
    docs = Path(__file__).parents[1] / "docs"
    for page, anchor in re.findall(r"\]\(([\w.-]*)#([\w-]+)\)", PAGE):
        text = (docs / page).read_text("utf-8") if page else PAGE
        headings = re.findall(r"^#+ (.*)$", text, re.M)
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in anchors, (page, anchor)


# What headers cannot show -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A Llama of equal heads and square projections, in which mistakes fit."""
    home = tmp_path_factory.mktemp("square")
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(home)
    return home, model


ATTN = "[self_attn.q_proj, self_attn.k_proj, self_attn.v_proj]"
# Every row of the table on the page: a rule (or an override of the conf) that is wrong that way.
MISTAKES = {
    "nothing": "attn.o: self_attn.o_proj",
    "a square matrix transposed": "attn.o: {from: self_attn.o_proj, transpose: true}",
    "rows by head": "attn.qkv: {from: self_attn.fused, parts: [q, k, v], per: head}",
    "interleaved rotary rows": f"attn.qkv: {{from: {ATTN}, rope: interleaved_to_half}}",
    "gate and up": "mlp.gate_up: [mlp.up_proj, mlp.gate_proj]",
    "norms that store weight - 1": "conf.layers.blocks.attn_norm.offset=1",
    "two norms exchanged": "{attn_norm: post_attention_layernorm, mlp_norm: input_layernorm}",
}


def test_every_row_of_the_table_is_tried():
    section = PAGE.split("## What headers cannot show")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    for row, mistake in zip(rows[2:], list(MISTAKES)[1:], strict=True):
        assert row.startswith(mistake)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_that_headers_do_not_show(
    mistake: str, llama: tuple[Path, LlamaForCausalLM], tmp_path: Path
):
    checkpoint, reference = llama
    if mistake == "rows by head":  # fused by part on disk, read as if by head
        checkpoint = fused_checkpoint(reference, tmp_path / "fused")
    rule, overrides = MISTAKES[mistake], ()
    if rule.startswith("conf."):
        rule, overrides = MISTAKES["nothing"], (rule,)
    indent = rule if rule.startswith("{") else f"{{{rule}}}"
    (tmp_path / "weight_maps").mkdir()
    map_text = f"extends: llama\nweights: {{'layers.{{i}}': {indent}}}\n"
    (tmp_path / "weight_maps" / "llama.yaml").write_text(map_text)
    found = assemble(checkpoint, "llama", overrides, search_path=[tmp_path])
    assert not found.plan.errors
    model = assembler.load_model(checkpoint, "llama", overrides=overrides, search_path=[tmp_path])
    ids = torch.arange(23)[None]
    with torch.inference_mode():
        expected = reference(ids).logits
        error = (assembler.logits(model, ids) - expected).abs().max() / expected.std()
    assert error < 3e-5 if mistake == "nothing" else error > 0.1


def fused_checkpoint(model: LlamaForCausalLM, folder: Path) -> Path:
    """The model saved with q, k and v one behind the other in one tensor."""
    weights = dict(model.state_dict())
    for i in range(model.config.num_hidden_layers):
        at = f"model.layers.{i}.self_attn"
        rows = [weights.pop(f"{at}.{x}_proj.weight") for x in "qkv"]
        weights[f"{at}.fused.weight"] = torch.cat(rows)
    model.config.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    return folder
