"""From a checkpoint to a model: what it computes, which options it takes, how a load fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import (
    change_config,
    change_tensors,
    greedy,
    save_llama,
    save_tokenizer,
)
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import assembler
from assembler import LLM, RequestOutput, SamplingParams
from assembler.errors import (
    AssemblerError,
    CheckpointError,
    OptionError,
    RequestError,
    SpecError,
    TokenizerError,
)
from assembler.loading import assemble, load_weights

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    return save_llama(folder)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_logits_equal_transformers(reference: LlamaForCausalLM, folder: Path):
    model = assembler.load_model(folder)
    ids = torch.randint(0, 260, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = assembler.logits(model, ids), reference(ids).logits
    assert ours.shape == (2, 23, 260) and theirs.std() > 0.3
    assert (ours - theirs).abs().max() <= 3e-5 * max(1.0, theirs.std().item())
    assert not model.training
    with pytest.raises(OptionError, match=r"input_ids is \[batch, length\], not \[23\]"):
        assembler.logits(model, ids[0])
    with pytest.raises(OptionError, match=r"input_ids has \[-1, 260\], but the vocabulary is 0 to"):
        assembler.logits(model, torch.tensor([[3, 260, -1]]))


def test_a_loaded_model_trains(reference: LlamaForCausalLM, folder: Path):
    with torch.inference_mode():  # parameters are ordinary ones even so
        model = assembler.load_model(folder)
    ids = torch.arange(12)[None]
    for logits, module in (
        (assembler.logits(model, ids), model),
        (reference(ids).logits, reference),
    ):
        module.zero_grad()
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    ours, theirs = model.layers[0].mlp.down.weight, reference.model.layers[0].mlp.down_proj.weight
    assert theirs.grad.abs().max() > 1e-4
    assert (ours.grad - theirs.grad).abs().max() <= 1e-3 * theirs.grad.abs().max()


def test_load_model_takes_dtype_overrides_and_conf(reference: LlamaForCausalLM, folder: Path):
    model = assembler.load_model(folder, "llama", torch.bfloat16, overrides=["conf.layers.count=1"])
    assert len(model.layers) == 1
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    first = LlamaForCausalLM.from_pretrained(folder, num_hidden_layers=1, dtype=torch.float32)
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        for parameter in first.parameters():  # not its buffers: frequencies stay float32
            parameter.copy_(parameter.bfloat16())
        ours, theirs = assembler.logits(model.float(), ids), first(ids).logits
    assert (ours - theirs).abs().max() <= 3e-5 * max(1.0, theirs.std().item())


def test_rewrites_change_no_logits(reference: LlamaForCausalLM, folder: Path):
    ids = torch.randint(0, 260, (2, 23), generator=torch.Generator().manual_seed(0))
    plain, rewritten = (LLM(folder, rewrites=rewrites).model for rewrites in ("none", "all"))
    assert plain.layers[1].code != rewritten.layers[1].code
    with torch.inference_mode():
        assert torch.equal(assembler.logits(plain, ids), assembler.logits(rewritten, ids))


def test_two_architectures_side_by_side(reference: LlamaForCausalLM, folder: Path, tmp_path: Path):
    config = GPT2Config(
        vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=None
    )
    torch.manual_seed(1)
    gpt2 = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    gpt2.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    llm, other = LLM(folder), LLM(tmp_path)
    assert (llm.spec.name, other.spec.name) == ("llama", "gpt2")
    llamas, others = llm.stream("Hello there", GREEDY), other.stream("Hello there", GREEDY)
    last = list(zip(llamas, others, strict=False))[-1]  # in turns
    ids = llm.get_tokenizer().encode("Hello there")
    assert last[0].outputs[0].token_ids == greedy(reference, ids, 12)
    assert last[1].outputs[0].token_ids == greedy(gpt2, ids, 12)
    llamas.close()


def test_dummy_weights_need_a_config_only(tmp_path: Path):
    save_llama(tmp_path, tokenizer=False)
    (tmp_path / "model.safetensors").unlink()
    llm = LLM(tmp_path, load="dummy", seed=5)
    [output] = llm.generate([1, 2, 3], GREEDY, use_tqdm=False)
    assert output.outputs[0].text == "" and len(output.outputs[0].token_ids) == 12
    again = LLM(tmp_path / "config.json", load="dummy", seed=5)
    assert tokens(again.generate([1, 2, 3], GREEDY, use_tqdm=False)) == tokens([output])
    with pytest.raises(RequestError, match="give the prompt as a list of token ids"):
        llm.generate("text", GREEDY, use_tqdm=False)
    with pytest.raises(RequestError, match="no tokenizer to find stop strings"):
        llm.generate([1], SamplingParams(stop="x"), use_tqdm=False)
    for call in (llm.get_tokenizer, lambda: llm.chat([{"role": "user", "content": "Hi"}])):
        with pytest.raises(TokenizerError, match="came without tokenizer files"):
            call()
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        LLM(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seq": 1}, r"unknown option 'max_num_seq'\. Did you mean 'max_num_seqs'"),
        ({"dtype": "f32", "devise": "cpu"}, r"dtype='f32': .*\n.*'devise'\. Did you mean 'device'"),
        ({"load": "dumy"}, r"load='dumy': input should be 'auto' or 'dummy'"),
        ({"device": "banana"}, "device=banana cannot be used here"),
        ({"attention": "flash"}, "attention='flash': input should be"),
        ({"rewrites": ["x"]}, "unknown rewrite 'x'"),
        ({"tensor_parallel_size": 3}, "'q' has 4 units of .* 3 ranks cannot share"),
        ({"max_model_len": 257}, "max_model_len=257 is more than the 256 tokens"),
        ({"kv_cache_memory_bytes": 1}, "1 bytes of KV cache memory are too little for one page"),
        ({"max_num_batched_tokens": 1}, "max_num_batched_tokens=1 must be at least max_num_seqs"),
        ({"overrides": ["conf.layers.cuont=1"]}, "'cuont'. Did you mean 'count'"),
        ({"conf": "lama"}, r"no conf named 'lama'\. Did you mean 'llama'"),
        ({"search_path": ["nowhere"]}, "names 'nowhere', which is not a folder"),
    ],
)
def test_wrong_options(
    options: dict[str, Any], message: str, folder: Path, reference: LlamaForCausalLM
):
    with pytest.raises((OptionError, SpecError), match=message):
        LLM(folder, **options)


def test_options_in_their_own_types(folder: Path, reference: LlamaForCausalLM):
    other = LLM(folder, dtype=torch.bfloat16, device=torch.device("cpu"), search_path=[str(folder)])
    assert {p.dtype for p in other.model.parameters()} == {torch.bfloat16}
    assert (other.options.dtype, other.options.device) == ("bfloat16", "cpu")
    assert {c.dtype for pair in other.engine.model_runner.kv_caches for c in pair} == {
        torch.bfloat16
    }


def test_weights_without_a_tokenizer_take_token_ids(tmp_path: Path):
    model = save_llama(tmp_path, tokenizer=False)
    llm = LLM(tmp_path)
    [output] = llm.generate([1, 2, 3], GREEDY, use_tqdm=False)
    assert output.outputs[0].token_ids == greedy(model, [1, 2, 3], 12)
    with pytest.raises(RequestError, match="give the prompt as a list of token ids"):
        llm.generate("text", GREEDY, use_tqdm=False)
    with pytest.raises(TokenizerError, match=r"prompts are token ids.*no tokenizer\.json \(found"):
        llm.get_tokenizer()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a readable tokenizer"):
        LLM(tmp_path)


def test_no_model_says_what_to_pass():
    with pytest.raises(OptionError, match=r"which model\?.*Pass checkpoint=FOLDER"):
        LLM()


def test_loading_reports_its_progress(folder: Path, reference: LlamaForCausalLM):
    seen: list[tuple[int, int]] = []
    LLM(folder, progress=lambda done, total: seen.append((done, total)))
    done, totals = zip(*seen, strict=True)
    assert len(set(totals)) == 1 and done[-1] == totals[0]
    assert list(done) == sorted(done) and len(done) == 30


# Loads that fail ----------------------------------------------------------------------------------


def test_a_checkpoint_that_does_not_fit_is_refused_before_reading(tmp_path: Path):
    save_llama(tmp_path)
    change_tensors(tmp_path, lambda w: w.pop("model.norm.weight"))
    for load in (LLM, assembler.load_model):
        with pytest.raises(CheckpointError, match=r"missing: norm\.weight"):
            load(tmp_path)
    assembly = assemble(tmp_path)
    with pytest.raises(CheckpointError):
        load_weights(assembly)
    assert all(parameter.is_meta for parameter in assembly.model.parameters())


def test_a_load_that_fails_half_way_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The head turns out to differ from the embedding only when both are read."""
    save_llama(tmp_path)
    change_config(tmp_path, tie_word_embeddings=True)
    assembly = assemble(tmp_path)
    assembly.plan.raise_for_findings()  # headers cannot show it
    with pytest.raises(CheckpointError, match=r"ties lm_head\.weight to embed\.weight, but tensor"):
        load_weights(assembly)
    assert all(parameter.is_meta for parameter in assembly.model.parameters())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        assembler.logits(assembly.model, torch.tensor([[1, 2]])).sum().item()
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false"):
        LLM(tmp_path)


def test_a_file_that_shrinks_after_planning(tmp_path: Path):
    save_llama(tmp_path)
    assembly = assemble(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_weights(assembly)
    assert all(parameter.is_meta for parameter in assembly.model.parameters())


def test_a_failed_load_does_not_disturb_a_second_try(tmp_path: Path, reference: LlamaForCausalLM):
    save_llama(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2000])
    with pytest.raises(AssemblerError, match="truncated"):
        LLM(tmp_path)
    file.write_bytes(whole)
    llm = LLM(tmp_path)
    ids = llm.get_tokenizer().encode("Hello")
    assert tokens(llm.generate("Hello", GREEDY, use_tqdm=False)) == [greedy(reference, ids, 12)]


def test_weights_that_are_not_numbers_end_the_request(tmp_path: Path):
    save_llama(tmp_path)
    change_tensors(tmp_path, lambda w: w["model.norm.weight"].fill_(torch.nan))
    llm = LLM(tmp_path)
    [output] = llm.generate("a", GREEDY, use_tqdm=False)
    assert output.finished and output.outputs[0].finish_reason == "abort"
    assert isinstance(output.error, RequestError) and "not numbers" in str(output.error)
    assert llm.engine.is_finished()
