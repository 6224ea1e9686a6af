"""python -m assembler.verify: its words and its exit status."""

from __future__ import annotations

import json

import pytest

from assembler import verify
from assembler.command_line import run_command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_command(verify.main, argv)
        return (stop.value.code, *capsys.readouterr())

    return call


def test_pass(run) -> None:
    status, out, err = run("checkpoint=tiny", "model_type=llama")
    assert (status, err) == (0, "")
    first, dense, paged, verdict = out.splitlines()
    assert first == "llama beside transformers, weights of a tiny random model (llama)"
    assert dense.startswith("  logits       max |difference| ") and "too much" not in out
    assert paged.startswith("  paged        max |difference| ") and verdict == "PASS"


def test_fail(run, own) -> None:
    own("llama", "layers: {blocks: {attn: {rope: {theta: 10000.0, style: interleaved}}}}\n")
    status, out, _ = run("conf=own", "checkpoint=tiny", "model_type=llama")
    lines = [line.strip() for line in out.splitlines()]
    assert status == 1 and lines[-1] == "FAIL"
    assert "first difference: layers.0.attn (RopeAttn), conf/own.yaml:2" in lines
    assert "cause        rope.style: half, instead of interleaved (conf/own.yaml:2)" in lines
    assert "inside       layers.0.attn.qkv.q = model.layers.0.self_attn.q_proj: equal" in lines
    assert any(line.startswith("equation     x = x + attn(attn_norm(x)) (") for line in lines)


def test_fail_in_the_wiring(run, own) -> None:
    own("llama", "layers:\n  wiring: [x = x + attn_norm(attn(x)), x = x + mlp(mlp_norm(x))]\n")
    _, out, _ = run("conf=own", "checkpoint=tiny", "model_type=llama")
    assert "equation     x = x + attn_norm(attn(x)) (conf/own.yaml:3)" in out
    assert "the reference gives it attn_norm(...)" in out


def test_json(run) -> None:
    argv = ("checkpoint=tiny", "model_type=gemma2", "conf.layers.blocks.attn_norm.offset=0")
    status, out, _ = run(*argv, "format=json")
    report = json.loads(out)
    assert status == 1 and report["passed"] is False
    assert report["difference"]["place"] == "layers.0.attn_norm"
    assert report["difference"]["causes"][0]["change"] == "offset: 1"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("length=1", "length=1: input should be greater than or equal to 2"),
        ("tolerance=0", "tolerance=0"),
        ("agains=x", "unknown option 'agains'. Did you mean 'against'?"),
    ],
)
def test_wrong_options(argument: str, message: str, run) -> None:
    status, _, err = run("checkpoint=tiny", argument)
    assert status == 2 and message in err
