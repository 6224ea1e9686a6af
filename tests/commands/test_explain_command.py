"""`python -m assembler.explain`: a tensor's story as text and as JSON, read from headers alone."""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from pathlib import Path

import pytest
from command_runs import Run, refused
from tiny_llama import change_tensors

import assembler
from assembler import coverage, explain

KEY = "model.layers.1.self_attn.k_proj.weight"


def test_a_tensor_and_its_parameter(run: Run, tiny: Path):
    result = run(explain, f"checkpoint={tiny}", f"tensor={KEY}", "tp=4")
    assert (result.status, result.err) == (0, "")
    for pattern in (
        rf"^{re.escape(KEY)}: tensor of .*tiny \(weight map 'llama'\)$",
        r"^  file +.*tiny/model\.safetensors, bytes [\d,]+ to [\d,]+$",
        r"^  rule +layers\.\{i\}\.attn\.qkv ← .*llama\.yaml:\d+\)$",
        r"^  fills +rows 32:48 of layers\.1\.attn\.qkv\.weight 64×32, its part 'k'; in the type",
        r"^  tp=4 +ranks 0-1: rows 0:8 of 'k' .* \(replicated 2 times\)$",
    ):
        assert re.search(pattern, result.out, re.M), (pattern, result.out)
    of_parameter = run(explain, f"checkpoint={tiny}", "tensor=layers.1.attn.qkv.k", "tp=4")
    assert of_parameter.out.splitlines()[1:] == result.out.splitlines()[1:]


def test_a_gguf_tensor(run: Run, tiny: Path, home: Path):
    result = run(explain, f"checkpoint={home / 'tiny.gguf'}", "tensor=blk.0.attn_q.weight")
    assert result.status == 0
    assert re.search(r"^  op +rope interleaved to half, 4 heads → 32×32$", result.out, re.M)


def test_json_and_the_function_tell_the_same(run: Run, tiny: Path):
    data = json.loads(run(explain, f"checkpoint={tiny}", f"tensor={KEY}", "format=json").out)
    story = assembler.explain_tensor(KEY, tiny)
    assert data == json.loads(json.dumps(story.to_json()))
    [flow] = data["flows"]
    assert (data["complete"], flow["into"]["part"]) == (True, "k")
    with pytest.raises(AttributeError):
        story.name = "x"


def test_something_wrong_with_it(run: Run, copy: Path):
    change_tensors(copy, lambda weights: weights.pop(KEY))
    result = run(explain, f"checkpoint={copy}", "tensor=layers.1.attn.qkv")
    assert result.status == 1 and "half_merged: layers.1.attn.qkv.weight: has q and v" in result.out
    assert run(explain, f"checkpoint={copy}", "tensor=layers.2.attn.qkv").status == 0
    result = run(explain, f"checkpoint={copy}", "tensor=layers.2.attn.qkv", "tp=3")
    assert result.status == 1 and re.search(r"^  tp=3 +cannot work: .*'q' has 4", result.out, re.M)


def test_refusals(run: Run, tiny: Path):
    at = f"checkpoint={tiny}"
    near = KEY.replace("k_proj", "kproj")
    refused(run(explain, at, f"tensor={near}"), rf"neither .* nor .*Did you mean '{re.escape(KEY)}")
    refused(run(explain, at, "tensor=layers.1.atn.qkv"), r"Did you mean 'layers\.1\.attn\.qkv'")
    refused(run(explain, at, "tensor=attn"), r"has 'attn'\. Did you mean 'layers\.0\.attn'\?")
    refused(run(explain, at, "tensor=kqv"), r"Did you mean 'layers\.0\.attn\.qkv'\?")
    refused(run(explain, at), "which tensor")
    refused(run(explain, at, "tensor=x", "tp=0"), "tp=0")
    refused(run(explain, at, "tensor=x", "format=xml"), "'text' or 'json'")


def write_sparse(folder: Path, hidden: int = 2048, vocab: int = 32000) -> int:
    """A Llama whose weights are a hole in the file, with right headers; the bytes of the hole."""
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,)}
    shapes |= {"lm_head": (vocab, hidden)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj": (2 * hidden, hidden) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj"] = (hidden, 2 * hidden)
        shapes |= {f"{at}.{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden}
    config |= {"intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 16}
    config |= {"vocab_size": vocab, "rms_norm_eps": 1e-5, "max_position_embeddings": 64}
    config |= {"tie_word_embeddings": False, "hidden_act": "silu", "num_key_value_heads": 16}
    (folder / "config.json").write_text(json.dumps(config))
    return end


def bytes_read() -> int:
    """By this process so far, through whatever call but a memory map."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what Linux counts")
@pytest.mark.parametrize(
    ("command", "options"),
    [
        (explain, ["tensor=layers.0.attn.qkv", "tp=2"]),
        (coverage, ["tp=[1,2,4]"]),
        (coverage, ["format=markdown"]),
    ],
)
def test_no_weight_is_read(command, options: list[str], run: Run, tmp_path: Path, monkeypatch):
    size = write_sparse(tmp_path / "sparse")
    monkeypatch.setattr(mmap, "mmap", None)  # nor mapped
    run(command, f"checkpoint={tmp_path / 'sparse'}", *options)  # modules are imported by now
    before = bytes_read()
    result = run(command, f"checkpoint={tmp_path / 'sparse'}", *options)
    assert (result.status, result.err) == (0, "")
    assert bytes_read() - before < 2_000_000 < size // 100
