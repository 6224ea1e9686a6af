"""The real model as a folder: SmolLM2's GGUF file, exported, is what transformers then runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

QUESTIONS = ("What is the capital of France?", "def fibonacci(n):", "Write about the sea 🐉.")
NEW_TOKENS = 24


def test_transformers_generates_our_text_from_the_folder(tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from assembler import LLM, SamplingParams

    out = tmp_path / "smollm2"
    command = [sys.executable, "-m", "assembler.export", "conf=smollm2", f"out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 272 tensors, 538.1 MB in 1 file, weight map 'llama'\n"
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(out)
    llm = LLM(conf="smollm2")
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [llm.chat_prompt(chat) for chat in chats]
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for chat, prompt, output in zip(chats, prompts, outputs, strict=True):
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        assert ids[0].tolist() == prompt
        answer = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )[0, len(prompt) :]
        assert output.outputs[0].token_ids == answer.tolist()
        assert output.outputs[0].text == tokenizer.decode(answer, skip_special_tokens=True)
