"""Where the fused kernels run: by device, dtype and gradient, and what the environment says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from assembler.errors import OptionError
from assembler.kernels import fused
from assembler.kernels.embedding import embed
from assembler.kernels.fused import VARIABLE, chosen_by, runs_fused
from assembler.kernels.gating import gated
from assembler.kernels.norms import layer_norm, rms_norm
from assembler.model.build import build_model
from assembler.model.compose import load_spec

TINY = {
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32,
}


def on_gpu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor that says it is on a GPU; none is needed to make it."""
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize(
    ("tensors", "fuses"),
    [
        ((on_gpu(3), on_gpu(4)), True),
        ((on_gpu(3), None), True),
        ((on_gpu(3, dtype=torch.float64),), False),
        ((on_gpu(3), on_gpu(3, dtype=torch.float32)), False),
        ((on_gpu(3), on_gpu(3).requires_grad_()), False),
        ((torch.empty(3),), False),
        ((torch.empty(3, device="meta"),), False),
    ],
    ids=["gpu", "nothing", "float64", "mixed", "gradient", "cpu", "meta"],
)
def test_the_device_decides(tensors, fuses):
    assert runs_fused(*tensors) is fuses


def test_no_gradient_is_needed_where_none_is_recorded():
    with torch.no_grad():
        assert runs_fused(on_gpu(3).requires_grad_())


def test_the_gradient_of_any_of_them_counts():
    assert runs_fused(on_gpu(3), beside=(on_gpu(3, dtype=torch.float64), None))
    assert not runs_fused(on_gpu(3), beside=(on_gpu(3, dtype=torch.float64).requires_grad_(),))


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """The environment is read anew, here and by whoever comes after."""
    fused.read_choice.cache_clear()
    yield
    fused.read_choice.cache_clear()


def test_the_environment_is_read_when_it_is_asked_for(fresh_choice, monkeypatch):
    monkeypatch.setenv(VARIABLE, "never")
    assert not runs_fused(on_gpu(3))
    monkeypatch.setenv(VARIABLE, "auto")
    assert not runs_fused(on_gpu(3)), "it holds for the process"
    fused.read_choice.cache_clear()
    assert runs_fused(on_gpu(3)) and not runs_fused(torch.empty(3))


def test_a_model_is_not_assembled_where_the_environment_is_wrong(fresh_choice, monkeypatch):
    monkeypatch.setenv(VARIABLE, "newer")
    with pytest.raises(OptionError, match="Did you mean 'never'"):
        build_model(load_spec("llama", TINY))


def test_never_and_always(monkeypatch):
    monkeypatch.setattr(fused, "fused_choice", lambda: "never")
    assert not runs_fused(on_gpu(3))
    monkeypatch.setattr(fused, "fused_choice", lambda: "always")
    assert runs_fused(on_gpu(3)) and runs_fused(torch.empty(3))
    assert not runs_fused(torch.empty(3, device="meta"))


def test_without_triton_it_is_plain_torch(monkeypatch):
    monkeypatch.setattr(fused, "INSTALLED", False)
    assert not runs_fused(on_gpu(3))


def test_what_the_environment_may_say():
    assert chosen_by({}) == "auto" and chosen_by({VARIABLE: "never"}) == "never"
    assert chosen_by({VARIABLE: "always", "TRITON_INTERPRET": "1"}) == "always"
    with pytest.raises(OptionError, match=r"none of auto, never, always\. Did you mean 'always'"):
        chosen_by({VARIABLE: "allways"})
    with pytest.raises(OptionError, match="set TRITON_INTERPRET=1 as well"):
        chosen_by({VARIABLE: "always"})


@pytest.mark.parametrize("width", [24, fused.MAX_WIDTH + 1])
def test_one_interface_gives_the_same_either_way(width, monkeypatch):
    """Rows too wide for the kernel go to torch."""
    generator = torch.Generator().manual_seed(0)
    x, residual, weight = (torch.randn(2, width, generator=generator) for _ in range(3))
    found = {}
    for choice in ("never", "always"):
        monkeypatch.setattr(fused, "fused_choice", lambda choice=choice: choice)
        found[choice] = (
            *rms_norm(x, residual, weight[0], 1e-6),
            *layer_norm(x, residual, weight[0], None, 1e-6),
            gated(x, residual, torch.nn.functional.silu, "silu"),
            gated(x, residual, torch.abs, {"block": "a function of one's own"}),
            embed(torch.tensor([1, 0]), weight, 3.0),
        )
    for plain, ours in zip(found["never"], found["always"], strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-6, atol=2e-6)


def test_torch_compile_takes_them_as_they_are(monkeypatch):
    """One graph without breaks, in which the kernels are operations."""
    monkeypatch.setattr(fused, "fused_choice", lambda: "always")
    seen: list[str] = []

    def backend(graph_module, inputs):
        targets = (str(node.target) for node in graph_module.graph.nodes)
        seen.extend(target for target in targets if target.startswith("assembler"))
        return graph_module.forward

    def block(tokens, weight):
        x = embed(tokens, weight, 3.0)
        normed, total = rms_norm(x, x, weight[0], 1e-6)
        return gated(normed, total, torch.nn.functional.silu, "silu")

    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    arguments = (torch.tensor([3, 0, 4]), weight)
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    assert torch.equal(compiled(*arguments), block(*arguments))
    assert [name.split(".")[1] for name in seen] == ["embed", "add_rms_norm", "gated"]
