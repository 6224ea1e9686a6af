"""How long sequences and steps may be, and what is refused before any weight is read."""

import pytest
from engine_fakes import MemoryModel
from tiny_llama import save_llama

from assembler import LLM
from assembler.engine.build import build_engine
from assembler.engine.lengths import check_lengths
from assembler.engine.options import EngineOptions
from assembler.errors import OptionError


def build(model_length=None, **options):
    options = EngineOptions(**options)
    return build_engine(
        MemoryModel(), None, None, options, vocab_size=64, model_length=model_length
    )


def test_engine_takes_its_length_from_the_options_or_the_model():
    assert build(model_length=100).max_model_len == 100
    assert build(model_length=100, max_model_len=60).max_model_len == 60
    with pytest.raises(OptionError, match="max_model_len=101 is more than the 100 tokens"):
        build(model_length=100, max_model_len=101)


def test_fewer_tokens_than_sequences_in_a_step_are_refused():
    with pytest.raises(OptionError, match="max_num_batched_tokens=8 must be at least max_num_seqs"):
        build(model_length=100, max_num_batched_tokens=8, max_num_seqs=9)


def test_a_step_holds_a_whole_sequence_where_prompts_are_not_cut():
    def tokens_of_a_step(**options):
        return build(model_length=5000, **options).scheduler.max_num_batched_tokens

    assert tokens_of_a_step() == 2048
    assert tokens_of_a_step(max_num_seqs=3000) == 3000
    assert tokens_of_a_step(enable_chunked_prefill=False) == 5000
    assert tokens_of_a_step(enable_chunked_prefill=False, max_model_len=100) == 2048
    assert tokens_of_a_step(max_num_batched_tokens=300) == 300
    with pytest.raises(OptionError, match="max_num_batched_tokens=300 is less than max_model_len"):
        tokens_of_a_step(enable_chunked_prefill=False, max_num_batched_tokens=300)


def test_whether_prompts_are_cut_is_an_option():
    assert build(model_length=100).scheduler.chunked_prefill
    assert not build(model_length=100, enable_chunked_prefill=False).scheduler.chunked_prefill


def test_all_contradictions_are_told_at_once():
    options = EngineOptions(
        max_model_len=300, max_num_batched_tokens=8, enable_chunked_prefill=False
    )
    with pytest.raises(OptionError) as error:
        check_lengths(options, 200)
    first, second, third = str(error.value).splitlines()
    assert "max_model_len=300 is more than the 200 tokens" in first
    assert "max_num_batched_tokens=8 must be at least max_num_seqs=256" in second
    assert "max_num_batched_tokens=8 is less than max_model_len=300" in third
    check_lengths(EngineOptions(), None)


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 1},
        {"max_num_batched_tokens": 255, "enable_chunked_prefill": False, "max_num_seqs": 2},
        {"max_model_len": 257},
        {"kv_cache_memory_bytes": 100},
        {"max_model_len": 257, "tensor_parallel_size": 2, "device": "cpu"},
    ],
)
def test_contradictions_are_found_before_weights_are_read(options, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("weights are read, or ranks started")

    save_llama(tmp_path)
    monkeypatch.setattr("assembler.rank_model.load_weights", never)
    monkeypatch.setattr("assembler.rank_model.start_ranks", never)
    with pytest.raises(OptionError):
        LLM(tmp_path, **options)
