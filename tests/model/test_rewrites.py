"""The rewrites change the graphs and not one bit of the logits."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx
from toy_confs import Workspace, changed

from assembler.blocks.context import ForwardContext
from assembler.errors import OptionError
from assembler.model.rewrites import REWRITES

ATTN, MLP = "x = x + attn(attn_norm(x))", "x = x + mlp(mlp_norm(x))"
CONFS = {
    "pre-norm": changed(),
    "one layer": changed(("count: 2", "count: 1")),
    "three layers": changed(("count: 2", "count: 3")),
    "residual on the right": changed(
        (ATTN, "x = attn(attn_norm(x)) + x"), (MLP, "x = mlp(mlp_norm(x)) + x")
    ),
    "post-norm": changed((ATTN, "x = attn_norm(x + attn(x))"), (MLP, "x = mlp_norm(x + mlp(x))")),
    "norm after the branch": changed(
        (ATTN, "x = x + attn_norm(attn(x))"), (MLP, "x = x + mlp_norm(mlp(x))")
    ),
    "sandwich": changed(
        ("    mlp: {", "    post_attn: {block: RMSNorm, eps: 1e-5, offset: 1}\n"
         "    post_mlp: {block: LayerNorm}\n    mlp: {"),
        (ATTN, "x = x + post_attn(attn(attn_norm(x)))"),
        (MLP, "x = x + post_mlp(mlp(mlp_norm(x)))"),
    ),
    "parallel": changed(
        (f"    - {ATTN}\n", ""), (MLP, "x = x + attn(attn_norm(x)) + mlp(mlp_norm(x))")
    ),
    "parallel, one norm": changed(
        ("    mlp_norm: {block: RMSNorm, eps: 1e-5}\n", ""), (f"    - {ATTN}\n", ""),
        (MLP, "x = x + (attn(attn_norm(x)) + mlp(attn_norm(x)))"),
    ),
    "depth-scaled": changed(
        (ATTN, "x = sqrt(1 - 1/(2*(i+1))) * x + attn(attn_norm(x)) / sqrt(2*(i+1))"),
        (MLP, "x = x + 0.22 * mlp(mlp_norm(x))"),
        ("x = layers(embed(tokens))", "x = layers(sqrt(hidden_size) * embed(tokens))"),
        ("lm_head(norm(x))", "softcap(lm_head(norm(x)), 3.0)"),
    ),
    "embeddings times a number": changed(
        ("x = layers(embed(tokens))", "x = layers(12.5 * embed(tokens))"),
    ),
    "embeddings times a number, used twice": changed(
        ("x = layers(embed(tokens))", "e = embed(tokens)\n  - x = layers(e * 3 + e)"),
    ),
    "embeddings times a number twice": changed(
        ("x = layers(embed(tokens))", "x = layers(0.5 * (embed(tokens) * 0.3))"),
    ),
    "ends with a product": changed((MLP, "x = (x + mlp(mlp_norm(x))) * 0.5")),
    "plus a number": changed((MLP, "x = x + mlp(mlp_norm(x))\n    - x = x + 0.25")),
    "plus a number of the layer": changed((MLP, "x = x + mlp(mlp_norm(x))\n    - x = x + i")),
    "two streams": changed(
        ("count: 2", "count: 2\n  streams: [x, skip]"),
        (MLP, "x = x + mlp(mlp_norm(x))\n    - skip = skip + 0.5 * x"),
        ("x = layers(embed(tokens))", "x, skip = layers(embed(tokens), embed(tokens))"),
        ("lm_head(norm(x))", "lm_head(norm(x + skip))"),
    ),
    "a stream swapped": changed(
        ("count: 2", "count: 2\n  streams: [x, y]"),
        (ATTN, "h = x + attn(attn_norm(y))"),
        (MLP, "y = x + mlp(mlp_norm(h))\n    - x = h"),
        ("x = layers(embed(tokens))", "x, y = layers(embed(tokens), embed(tokens))"),
        ("lm_head(norm(x))", "lm_head(norm(y))"),
    ),
    "two kinds": changed(
        ("count: 2", "count: 4\n  kinds: b if i % 2 else a\n  variants:\n    a: {}\n"
         "    b: {wiring: [x = x + attn(attn_norm(x)) + mlp(mlp_norm(x))]}"),
    ),
    "two kinds, one without a sum at the end": changed(
        ("count: 2", "count: 4\n  kinds: b if i % 2 else a\n  variants:\n    a: {}\n"
         "    b: {wiring: [x = mlp(mlp_norm(x + attn(attn_norm(x))))]}"),
    ),
    "a gated branch": changed(
        (MLP, "h = mlp_norm(x)\n    - x = x + sigmoid(mlp(h)) * h"),
    ),
    "a stream through all layers": changed(
        ("count: 2", "count: 3\n  streams: [x, first]"),
        (ATTN, "x = x + attn(attn_norm(x + first))"),
        ("x = layers(embed(tokens))", "h = embed(tokens)\n  - x, first = layers(h, h)"),
        ("lm_head(norm(x))", "lm_head(norm(x) + first)"),
    ),
    "two axes": changed(
        ("count: 2", "count: 4\n  kinds: {mix: b if i % 2 else a, feed: d if i > 1 else c}\n"
         "  variants:\n    a: {}\n    b: {blocks: {attn_norm: {block: LayerNorm}}}\n    c: {}\n"
         "    d: {wiring: [x = mlp_norm(x + attn(attn_norm(x)) + mlp(x))]}"),
    ),
    "the sum read before and after its norm": changed(
        (MLP, "h = x + mlp(mlp_norm(x))\n    - x = h * tanh(mlp_norm2(h)) + h"),
        ("    mlp: {", "    mlp_norm2: {block: RMSNorm, eps: 1e-5}\n    mlp: {"),
    ),
    "two norms of one sum": changed(
        (f"    - {ATTN}\n", ""),
        (MLP, "h = x + x / 3\n    - x = h + attn(attn_norm(h)) + mlp(mlp_norm(h))"),
    ),
    "norm around the layers": changed(
        ("lm_head: ", "in_norm: {block: LayerNorm}\nlm_head: "),
        ("x = layers(embed(tokens))",
         "x = layers(in_norm(embed(tokens) + embed(tokens)))"),
        ("lm_head(norm(x))", "lm_head(norm(x) + x)"),
    ),
    "no final norm": changed(("norm: {block: RMSNorm, eps: 1e-5}\nlm", "lm"),
                             ("lm_head(norm(x))", "lm_head(x)")),
}  # fmt: skip


def _logits(model: fx.GraphModule, like: fx.GraphModule | None = None) -> torch.Tensor:
    """Logits of a fixed text with random weights, or those of another model."""
    torch.manual_seed(0)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    if like is not None:
        model.load_state_dict(like.state_dict())
    ids = torch.arange(14).view(2, 7) * 5 % 11
    with torch.no_grad():
        return model(ids, ForwardContext.dense(7))


@pytest.mark.parametrize("name", CONFS)
def test_logits_are_the_same_bit_for_bit(ws: Workspace, name: str) -> None:
    spec = ws.spec(CONFS[name])
    plain = ws.build(spec, rewrites="none")
    expected = _logits(plain)
    assert expected.std() > 1e-3 and expected.isfinite().all()
    for rewrites in ("all", *REWRITES):
        logits = _logits(ws.build(spec, rewrites=rewrites), like=plain)
        assert torch.equal(logits, expected), rewrites


def _sums(model: fx.GraphModule) -> int:
    """Additions of two tensors that are left in the model and its layers."""
    graphs = [model.graph, *(layer.graph for layer in model.layers)]
    return sum("operator.add" in node.format_node() for graph in graphs for node in graph.nodes)


@pytest.mark.parametrize(
    ("name", "rewrites", "sums"),
    [
        ("pre-norm", "none", 4),
        ("pre-norm", "carry_residual", 4),
        ("pre-norm", "fuse_add_norm", 2),
        ("pre-norm", "all", 0),
        ("sandwich", "all", 0),
        ("two kinds", "none", 8),
        ("two kinds", "all", 2),  # the inner sum of each parallel layer
        ("two streams", "all", 4),  # streams are handed on as they are
        ("no final norm", "all", 1),
    ],
)
def test_what_the_rewrites_take_away(ws: Workspace, name: str, rewrites: str, sums: int) -> None:
    assert _sums(ws.build(ws.spec(CONFS[name]), rewrites=rewrites)) == sums


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("embeddings times a number", 0),
        ("depth-scaled", 0),
        ("embeddings times a number, used twice", 1),
        ("embeddings times a number twice", 1),  # each product is rounded
    ],
)
def test_numbers_that_multiply_embeddings(ws: Workspace, name: str, products: int) -> None:
    graph = ws.build(ws.spec(CONFS[name])).graph
    assert sum(node.target is operator.mul for node in graph.nodes) == products
    (call,) = graph.find_nodes(op="call_module", target="embed")
    assert len(call.args) == (1 if "used" in name else 2)


def test_a_list_of_rewrites(ws: Workspace) -> None:
    spec = ws.base()
    assert _sums(ws.build(spec, rewrites=list(REWRITES))) == _sums(ws.build(spec))
    assert _sums(ws.build(spec, rewrites=[])) == 4


def test_an_unknown_rewrite(ws: Workspace) -> None:
    with pytest.raises(OptionError) as caught:
        ws.build(ws.base(), rewrites="fuse_norm")
    assert str(caught.value) == (
        "unknown rewrite 'fuse_norm'. Did you mean 'fuse_add_norm'? "
        "Known: carry_residual, fuse_add_norm, fuse_scaled_embedding, all, none"
    )
