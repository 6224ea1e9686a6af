"""Options of `python -m assembler.generate`: taken as meant, refused in words."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import Run, refused
from tiny_llama import (
    greedy,
)
from transformers import AutoTokenizer, LlamaForCausalLM

from assembler import SamplingParams, coverage, generate
from assembler.command_line import run_command
from assembler.errors import CheckpointError
from assembler.weights.hub_source import HubId

SAMPLING: dict[str, tuple[str, Any]] = {
    "temperature": ("0.7", 0.7),
    "top_p": ("0.9", 0.9),
    "top_k": ("5", 5),
    "min_p": ("0.05", 0.05),
    "seed": ("11", 11),
    "max_tokens": ("3", 3),
    "stop": ("[he, 'a b', \",\"]", ("he", "a b", ",")),
    "stop_token_ids": ("[1,2]", (1, 2)),
    "ignore_eos": ("true", True),
    "presence_penalty": ("0.5", 0.5),
    "frequency_penalty": ("-1", -1.0),
    "repetition_penalty": ("1.1", 1.1),
    "n": ("1", 1),
    "min_tokens": ("2", 2),
    "bad_words": ("[he, 'a b']", ("he", "a b")),
    "logit_bias": ("{5: 1.5, 7: -2}", {5: 1.5, 7: -2.0}),
    "allowed_token_ids": ("[1,5,7]", (1, 5, 7)),
    "skip_special_tokens": ("false", False),
    "include_stop_str_in_output": ("true", True),
}
NOT_PRINTED = {"logprobs", "prompt_logprobs"}


def test_every_sampling_parameter_by_its_name(run: Run, tiny: Path, asked: list):
    assert set(SAMPLING) == set(SamplingParams.model_fields) - NOT_PRINTED
    arguments = [f"{name}={text}" for name, (text, _) in SAMPLING.items()]
    assert run(generate, f"checkpoint={tiny}", "prompt=x", *arguments).status == 0
    [(_, params)] = asked
    assert params == SamplingParams(**{name: value for name, (_, value) in SAMPLING.items()})


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("stop=he", {"stop": ("he",)}),
        ("stop=, a=b", {"stop": (", a=b",)}),
        ("stop_token_ids=7", {"stop_token_ids": (7,)}),
        ("seed=-1", {"seed": None}),
        ("temperature=1", {"temperature": 1.0}),
        ("max_tokens=2", {"temperature": 0.0, "max_tokens": 2}),
        ("bad_words=he", {"bad_words": ("he",)}),
        ("allowed_token_ids=7", {"allowed_token_ids": (7,)}),
        ("allowed_token_ids=null", {"allowed_token_ids": None}),
        ("logit_bias=null", {"logit_bias": None}),
        ("logprobs=null", {"logprobs": None}),
    ],
)
def test_one_item_or_number_is_enough(
    argument: str, expected: dict[str, Any], run: Run, tiny: Path, asked: list
):
    assert run(generate, f"checkpoint={tiny}", "prompt=x", argument).status == 0
    assert {name: getattr(asked[0][1], name) for name in expected} == expected


def test_a_seed_repeats_the_text(run: Run, tiny: Path):
    def text(seed: int) -> str:
        arguments = ("prompt=x", "temperature=1", "max_tokens=20", f"seed={seed}")
        return run(generate, f"checkpoint={tiny}", *arguments).out

    assert text(1) == text(1) != text(2)


def test_samples_are_a_line_each(run: Run, tiny: Path):
    arguments = ("prompt=x", "temperature=1", "max_tokens=8", "seed=1")
    several = run(generate, f"checkpoint={tiny}", *arguments, "n=3")
    assert several.status == 0, several.err
    texts = [json.loads(line) for line in several.out.removesuffix("\n").split("\n")]
    assert len(texts) == len(set(texts)) == 3
    assert run(generate, f"checkpoint={tiny}", *arguments).out == texts[0] + "\n"
    assert sum(map(int, re.findall(r"(\d+) (?:length|stop)", several.err))) == 3


def test_a_stop_string_ends_the_text(run: Run, tiny: Path):
    whole = run(generate, f"checkpoint={tiny}", "prompt=x", "max_tokens=24").out.removesuffix("\n")
    stop = next(char for char in whole[3:] if char.isascii() and char.isalnum())
    result = run(generate, f"checkpoint={tiny}", "prompt=x", "max_tokens=24", f"stop={stop}")
    assert result.out == whole[: whole.index(stop)] + "\n"
    assert "ended by 1 stop" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("attention=triton",),
        ("rewrites=none",),
        ("rewrites=[fuse_add_norm]",),
        (
            "page_size=4",
            "max_num_batched_tokens=5",
            "max_num_seqs=2",
            "kv_cache_memory_bytes=100000",
        ),
        ("max_num_seqs=1", "max_model_len=64", "device=cpu", "dtype=float32", "tp=1"),
        ("conf=llama",),
    ],
)
def test_options_that_change_no_text(arguments: tuple[str, ...], run: Run, tiny: Path):
    base = (f"checkpoint={tiny}", "prompt=Hello there", "max_tokens=6")
    result = run(generate, *base, *arguments)
    assert result.status == 0, result.err
    assert result.out == run(generate, *base).out


def test_bfloat16(run: Run, tiny: Path, reference: LlamaForCausalLM):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    expected = greedy(model, tokenizer.encode("ab"), 3)
    base = (f"checkpoint={tiny}", "prompt=ab", "chat=false", "max_tokens=3")
    result = run(generate, *base, "dtype=bfloat16")
    assert result.status == 0
    assert result.out == tokenizer.decode(expected) + "\n"


def test_overrides_of_the_model(run: Run, tiny: Path, reference: LlamaForCausalLM):
    """One layer of three: the text is that of the first layer alone."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    first = LlamaForCausalLM.from_pretrained(tiny, num_hidden_layers=1)
    expected = greedy(first, tokenizer.encode("Hello"), 8)
    base = (f"checkpoint={tiny}", "prompt=Hello", "chat=false", "max_tokens=8")
    result = run(generate, *base, "conf.layers.count=1")
    assert result.status == 0, result.err
    assert result.out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"
    assert result.out != run(generate, *base).out


def test_a_conf_of_ones_own(run: Run, tiny: Path, tmp_path: Path):
    base = (f"checkpoint={tiny}", "prompt=Hello", "max_tokens=8")
    expected = run(generate, *base, "conf.layers.blocks.attn.scale=0.9").out
    assert expected != run(generate, *base).out
    text = "defaults: [llama, _self_]\nlayers: {blocks: {attn: {scale: 0.9}}}\n"
    (tmp_path / "my.yaml").write_text(text)
    assert run(generate, *base, "conf=./my.yaml").out == expected
    for folder in ("elsewhere", "."):  # named by hydra.searchpath; the current folder
        (tmp_path / folder / "conf").mkdir(parents=True)
        (tmp_path / folder / "conf" / f"mine{len(folder)}.yaml").write_text(text)
    assert run(generate, *base, "conf=mine9", "hydra.searchpath=[elsewhere]").out == expected
    assert run(generate, *base, "conf=mine1").out == expected
    refused(run(generate, *base, "conf=mine9"), r"no conf named 'mine9'\. Did you mean 'mine1'")


def test_dummy_weights(run: Run, tiny: Path, home: Path, tmp_path: Path):
    """A config is enough; without a tokenizer prompt and answer are token ids."""
    base = ("load=dummy", "max_tokens=5", "seed=3")
    with_tokenizer = run(generate, f"checkpoint={tiny}", "prompt=Hi", *base)
    assert with_tokenizer.status == 0, with_tokenizer.err
    gguf = run(generate, f"checkpoint={home / 'tiny.gguf'}", "prompt=Hi", *base)
    assert gguf.out == with_tokenizer.out
    config = tmp_path / "config.json"
    shutil.copy(tiny / "config.json", config)
    result = run(generate, f"checkpoint={config}", "prompt=1, 2 3", *base)
    assert result.status == 0, result.err
    assert len(result.out.split()) == 5
    assert all(0 <= int(token) < 260 for token in result.out.split())
    refused(run(generate, f"checkpoint={config}", "prompt=Hi", *base), "prompts are token ids")
    refused(run(generate, f"checkpoint={config}", "prompt=1 2"), r"config\.json: is no checkpoint")


WRONG_OPTIONS: dict[str, tuple[str, str]] = {
    "unknown": ("promt=x", r"unknown option 'promt'\. Did you mean 'prompt'"),
    "misspelt sampling": ("temprature=1", r"unknown option 'temprature'\. Did you mean 'temperatu"),
    "Hydra's own": ("hydra.run.dir=x", r"unknown option 'hydra\.run\.dir'.*--help"),
    "twice": ("prompt=a", r"'prompt' is given twice"),
    "sweep": ("-m", r"give a key several of them"),
    "sweep, long": ("--multirun", r"give a key several of them"),
    "swept without -m": ("temperature=0,1", r"temperature=0,1: is a sweep: -m runs the command"),
    "no pair": ("hello", r"'hello' is no key=value pair; --help"),
    "number": ("temperature=hot", r"temperature='hot': input should be a valid number"),
    "range": ("top_p=0", r"top_p=0: input should be greater than 0"),
    "negative": ("max_tokens=-3", r"max_tokens=-3: input should be greater than 0"),
    "bias": ("logit_bias={5: 101}", r"logit_bias\[5\]=101: input should be less than or equal"),
    "bias of no token": ("logit_bias={260: 1}", r"logit_bias has token ids .*: 260\. They must"),
    "greedy samples": ("n=2", r"n=2: greedy samples are all the same"),
    "minimum": ("min_tokens=300", r"min_tokens=300: .* max_tokens, which is 256"),
    "not printed": ("logprobs=3", r"logprobs: this command prints texts alone"),
    "flag": ("ignore_eos=2", r"ignore_eos=2: input should be a valid boolean"),
    "choice": ("dtype=float64", r"dtype='float64': input should be 'auto', 'float32', 'bfloat16'"),
    "attention": ("attention=flash", r"attention='flash': input should be 'auto', 'torch'"),
    "chat": ("chat=maybe", r"chat.*'maybe'"),
    "grammar": ("stop=[a,b]]", r"stop=\[a,b\]\]: '\[a,b\]\]' is not a value"),
    "device": ("device=banana", r"device=banana cannot be used here"),
    "rewrite": ("rewrites=fuse_ad_norm", r"unknown rewrite 'fuse_ad_norm'\. Did you mean 'fuse_a"),
    "tp": ("tp=3", r"'q' has 4 units .* 3 ranks cannot share"),
    "search path": (
        "hydra.searchpath=[nowhere]",
        r"hydra\.searchpath names 'nowhere', which is no",
    ),
    "override": ("conf.layers.cuont=1", r"conf\.layers has no 'cuont'\. Did you mean 'count'"),
    "override value": ("conf.layers.count=0", r"command line: layers\.count: .*greater"),
    "override sweep": ("conf.layers.count=1,2", r"conf\.layers\.count=1,2.*is a sweep: -m runs"),
    "override block": ("conf.layers.blocks.attn.windw=3", r"windw.*Did you mean 'window'"),
    "conf": ("conf=lama", r"no conf named 'lama'\. Did you mean 'llama'.*\? Available: .*gemma2, "),
    "conf path": ("conf=./lama.yaml", r"conf=\./lama\.yaml: no such file"),
    "more layers": (
        "conf.layers.count=5",
        r"missing: layers\.\{3-4\}\.attn_norm\.weight: the check",
    ),
    "length": ("max_model_len=1000", r"max_model_len=1000 is more than the 256 tokens the model"),
    "prompt and answer": (
        "max_tokens=250",
        r"max_tokens is 250; .* is 256 tokens\. Set max_tokens",
    ),
    "memory": ("kv_cache_memory_bytes=99", r"99 bytes of KV cache memory are too little for one p"),
    "stop token": (
        "stop_token_ids=260",
        r"stop_token_ids has token ids .*: 260\. They must be 0 to",
    ),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(case: str, run: Run, tiny: Path):
    argument, message = WRONG_OPTIONS[case]
    refused(run(generate, f"checkpoint={tiny}", "prompt=x", argument), message)


def test_all_wrong_options_come_at_once(run: Run):
    result = run(generate, "promt=x", "hello", "top_k=[1", "conf=a", "conf=b")
    refused(result, "'promt'", "'hello'", r"top_k=\[1", "'conf' is given twice")
    assert len(result.err.splitlines()) == 4
    result = run(generate, "prompt=x", "temperature=-1", "top_p=2", "stop=")
    refused(result, r"temperature=-1: .*\n.*top_p=2: .*\n.*stop\[0\]='': ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"what to generate from\? Pass prompt=TEXT"),
        (("checkpoint=x",), r"what to generate from\? Pass prompt=TEXT"),
        (("checkpoint=x", "prompt=a", "prompts=b"), r"prompt= and prompts= are both given"),
        (("prompt=a",), r"which model\? Pass checkpoint=FOLDER .* such as conf=smollm2"),
        (("prompt=a", "checkpoint=null"), r"which model\? Pass checkpoint=FOLDER"),
        (("prompt=a", "checkpoint=x.gguf"), r"'x\.gguf': no such folder or file"),
        (("prompt=a", "checkpoint=tiney"), r"'tiney': no such folder.*Did you mean 'tiny'"),
        (("prompt=a", "checkpoint=tiny/a.txt"), r"tiny/a\.txt: is no checkpoint"),
        (("prompt=a", "checkpoint=tiny"), r"tiny: holds no \*\.safetensors and no \.gguf"),
        (("prompt=a", "checkpoint="), r"checkpoint is empty"),
    ],
)
def test_no_prompt_or_no_model(arguments: tuple[str, ...], message: str, run: Run, tmp_path: Path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "a.txt").touch()
    refused(run(generate, *arguments), message)


def test_a_conf_whose_checkpoint_cannot_be_had(run: Run, monkeypatch: pytest.MonkeyPatch):
    def offline(hub_id: HubId) -> Path:
        raise CheckpointError(f"{hub_id.text}: the Hub cannot be reached.")

    monkeypatch.setattr("assembler.weights.source.open_hub", offline)
    result = run(generate, "conf=qwen3", "prompt=x")
    refused(result, r"Qwen/Qwen3-0\.6B: .*\(conf=qwen3 names it: pass checkpoint=\.\.\.\)")
    assert len(result.err.splitlines()) == 1


def test_help(run: Run, tmp_path: Path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "of_my_own.yaml").touch()
    for word in ("--help", "-h"):
        result = run(generate, "prompt=x", word)
        assert (result.status, result.err) == (0, "")
        for name in (*SAMPLING, "checkpoint", "prompts", "dtype", "page_size"):
            assert re.search(rf"^  {name}=", result.out, re.M), name
        assert re.search(r"conf is one of: .*llama.*of_my_own.*smollm2", result.out)
    result = run(coverage, "--help")
    assert (result.status, result.err) == (0, "")
    assert re.search(r"^  tp=\[1\]", result.out, re.M)


def test_an_interrupt(capsys: pytest.CaptureFixture[str]):
    def interrupted(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_command(interrupted, [])
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", "interrupted\n")
