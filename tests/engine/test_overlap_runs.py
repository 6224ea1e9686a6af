"""Many requests, and recorded decodes, with steps that overlap and without: the same tokens."""

import random

import pytest
import torch
from engine_fakes import VOCAB, MemoryModel, make_engine, run
from test_cuda_graphs import MAX_LEN, RunAgain, engine_with, tokens
from test_engine_attention import TinyLM

from assembler.engine.cuda_graphs import CUDACapture, GraphSettings, batch_sizes
from assembler.engine.model_runner import ModelRunner
from assembler.engine.sampling_params import SamplingParams
from assembler.kernels.dispatch import attention_backend


@pytest.mark.parametrize("seed", range(3))
def test_soak(seed):
    """Arrivals, stops, samples, aborts and preemptions: all get what they get without overlap."""
    rng = random.Random(seed)
    requests = {}
    for number in range(60):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 3, 8, 30]))]
        warm = rng.random() < 0.6
        params = SamplingParams(
            temperature=1.0 if warm else 0.0,
            n=rng.choice([1, 2, 3]) if warm else 1,
            seed=number,
            max_tokens=rng.randint(4, 25),
            min_tokens=rng.choice([0, 0, 4]),
            stop_token_ids=rng.sample(range(VOCAB), rng.choice([0, 3, 12])),
            repetition_penalty=1.2 if rng.random() < 0.05 else 1.0,
        )
        requests[f"r{number}"] = (prompt, params)
    found = []
    for overlap in (False, True):
        engine = make_engine(
            MemoryModel(),
            overlap=overlap,
            num_pages=20,
            page_size=3,
            max_model_len=60,
            max_num_seqs=7,
            max_num_batched_tokens=20,
        )
        waiting, outputs, aborted = [*requests.items()], {}, random.Random(seed)
        while waiting or not engine.is_finished():
            for name, request in waiting[:2]:
                engine.add_request(name, *request)
            del waiting[:2]
            if aborted.random() < 0.05:
                engine.abort(f"r{aborted.randrange(60)}")
            for output in engine.step():
                outputs[output.request_id] = output.outputs
            engine.check_integrity()
        assert engine.scheduler.num_preemptions > 10
        found.append(outputs)
    ended = [
        {n: o for n, o in outputs.items() if all(s.finish_reason for s in o)} for outputs in found
    ]
    both = ended[0].keys() & ended[1].keys()
    assert len(both) > 40
    assert {n: ended[0][n] for n in both} == {n: ended[1][n] for n in both}


def test_the_same_tokens_of_recorded_decodes():
    torch.manual_seed(0)
    model = TinyLM().requires_grad_(False)
    expected = tokens(engine_with(model, None))
    engine = engine_with(model, RunAgain(), overlap=True)
    assert tokens(engine) == expected
    assert engine.stats.num_graph_steps > 10


@pytest.mark.gpu
def test_the_same_tokens_on_a_gpu():
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = TinyLM().requires_grad_(False).to(device)
    found = []
    for overlap in (False, True):
        engine = make_engine(model, max_model_len=MAX_LEN, overlap=overlap)
        engine.model_runner = ModelRunner(
            model,
            attention_backend("triton", device),
            num_pages=400,
            page_size=4,
            device=device,
            graphs=GraphSettings(batch_sizes(16), MAX_LEN, CUDACapture(device)),
        )
        found.append(tokens(engine))
    assert found[0] == found[1]


def test_an_output_has_no_log_probabilities_of_a_token_in_flight():
    engine = make_engine(MemoryModel(), overlap=True)
    engine.add_request("a", [1, 2, 3], SamplingParams(temperature=0, max_tokens=9))
    engine.step()
    engine.add_request("b", [1, 2, 3], SamplingParams(temperature=0, max_tokens=9, logprobs=0))
    engine.step()  # b's first token is sampled behind the step that is read
    done = engine.abort("b").outputs[0]
    assert len(done.logprobs) == len(done.token_ids) == 0
    run(engine)
    engine.check_integrity()
