"""Rewrites of the graphs: each a named function that can be switched off and changes no logits.

They see patterns, never architectures: whatever YAML wires a sum into a norm gets the fused form.
A rewrite brings operations into one call of a block; whether one kernel then does them all is the
device's question (`assembler.kernels.fused`). What happens inside a block (QK-norm, rotation and
store of an attention; a gate; experts) is no node of these graphs: there the block itself names the
steps that its fields ask for, and a kernel takes them together.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from assembler.errors import OptionError, did_you_mean
from assembler.model.graphs import WiredGraph


@dataclass
class ModelGraphs:
    """All graphs of one model while they are rewritten.

    The layer at index 0 may differ from the later ones of its kind (it receives no pending sum), so
    `first` maps the kind of layer 0 to a graph of its own; empty when there is no difference.
    """

    model: WiredGraph
    kinds: dict[str, WiredGraph]
    first: dict[str, WiredGraph]
    first_kind: str

    def all(self) -> Iterable[WiredGraph]:
        return [self.model, *self.kinds.values(), *self.first.values()]


def carry_residual(graphs: ModelGraphs) -> None:
    """Let a layer's last residual add be done by the next layer, where a norm can absorb it.

    A layer ending in `x = x + mlp(...)` hands on the pair instead; the next one (and the model,
    after the last) begins with the sum. By itself this changes nothing; with `fuse_add_norm` the
    add at every layer border disappears into the norm behind it.
    """
    if not all(_last_add(wired) for wired in graphs.kinds.values()):
        return
    call = _layers_call(graphs.model)
    if call is None or len(graphs.kinds[graphs.first_kind].streams) != 1:
        return
    first = graphs.kinds[graphs.first_kind].copy()
    _return_pair(first)
    graphs.first[graphs.first_kind] = first
    for wired in graphs.kinds.values():
        _return_pair(wired)
        _begin_with_sum(wired)
    with graphs.model.graph.inserting_after(call):
        total = _sum_of_pair(graphs.model.graph, call)
    call.replace_all_uses_with(total, delete_user_cb=lambda user: not _takes_item_of(user, call))


def fuse_add_norm(graphs: ModelGraphs) -> None:
    """`s = a + b; n = norm(s)` -> `n, s = norm(b, a)`: one pass over memory instead of two."""
    for wired in graphs.all():
        create = wired.graph.create_node
        for add in list(wired.graph.nodes):
            norm = _norm_of_sum(add, wired)
            if norm is None:
                continue
            left, right = add.args
            with wired.graph.inserting_before(add):  # other readers of the sum may precede the norm
                pair = create(
                    "call_module", norm.target, (right, left), name=f"{norm.name}_and_sum"
                )
                normed = create("call_function", operator.getitem, (pair, 0), name=norm.name)
                total = create("call_function", operator.getitem, (pair, 1), name=add.name)
            norm.replace_all_uses_with(normed)
            wired.graph.erase_node(norm)
            add.replace_all_uses_with(total)
            wired.graph.erase_node(add)


def fuse_scaled_embedding(graphs: ModelGraphs) -> None:
    """`e = embed(t); x = c * e` -> `x = embed(t, c)` for a number c: no pass of its own."""
    wired = graphs.model
    for product in list(wired.graph.nodes):
        found = _embedding_and_factor(product, wired)
        if found is None:
            continue
        call, factor = found
        call.args = (*call.args, factor)
        product.replace_all_uses_with(call)
        wired.graph.erase_node(product)


REWRITES: Mapping[str, Callable[[ModelGraphs], None]] = {
    "carry_residual": carry_residual,
    "fuse_add_norm": fuse_add_norm,
    "fuse_scaled_embedding": fuse_scaled_embedding,
}


def apply_rewrites(graphs: ModelGraphs, chosen: str | Iterable[str]) -> None:
    """Apply the chosen rewrites in their fixed order: "all", "none", or a list of names.

    Raises:
        OptionError: an unknown name.
    """
    everything = {"all": list(REWRITES), "none": []}
    if isinstance(chosen, str):
        names = everything.get(chosen, [chosen])
    else:
        names = list(chosen)
    for name in names:
        if name not in REWRITES:
            known = [*REWRITES, *everything]
            raise OptionError(
                f"unknown rewrite '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}"
            )
    for name, rewrite in REWRITES.items():
        if name in names:
            rewrite(graphs)
    for wired in graphs.all():
        wired.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        wired.graph.lint()


def _is_sum(node: object) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.target is operator.add
        and all(isinstance(arg, fx.Node) and arg.op != "get_attr" for arg in node.args)
    )


def _output(wired: WiredGraph) -> fx.Node:
    return next(node for node in reversed(wired.graph.nodes) if node.op == "output")


def _last_add(wired: WiredGraph) -> fx.Node | None:
    """The residual add a one-stream layer ends with, if only the output uses it."""
    result = _output(wired).args[0]
    return result if _is_sum(result) and len(result.users) == 1 else None  # type: ignore[union-attr]


def _layers_call(wired: WiredGraph) -> fx.Node | None:
    calls = wired.graph.find_nodes(op="call_module", target="layers")
    return calls[0] if len(calls) == 1 else None


def _return_pair(wired: WiredGraph) -> None:
    add = _last_add(wired)
    assert add is not None
    _output(wired).args = (tuple(add.args),)
    wired.graph.erase_node(add)


def _begin_with_sum(wired: WiredGraph) -> None:
    (name,) = wired.streams
    stream = next(iter(wired.graph.nodes))
    with wired.graph.inserting_after(stream):
        delta = wired.graph.placeholder(f"{name}_delta")
    context = delta.next
    assert context.op == "placeholder", "ctx follows the streams"
    with wired.graph.inserting_after(context):
        total = wired.graph.create_node(
            "call_function", operator.add, (stream, delta), name=f"{name}_sum"
        )
    stream.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _sum_of_pair(graph: fx.Graph, pair: fx.Node) -> fx.Node:
    """`pair[0] + pair[1]`, inserted behind `pair`."""
    left = graph.create_node("call_function", operator.getitem, (pair, 0), name="x")
    with graph.inserting_after(left):
        right = graph.create_node("call_function", operator.getitem, (pair, 1), name="x_delta")
    with graph.inserting_after(right):
        return graph.create_node("call_function", operator.add, (left, right), name="x_sum")


def _takes_item_of(user: fx.Node, pair: fx.Node) -> bool:
    return user.target is operator.getitem and user.args[0] is pair


def _norm_of_sum(add: fx.Node, wired: WiredGraph) -> fx.Node | None:
    """The first norm that reads this sum, if the sum is one of two tensors."""
    if not _is_sum(add):
        return None
    for user in add.graph.nodes:
        if user.op == "call_module" and user.args == (add,):
            block = wired.blocks.get(str(user.target))
            if getattr(block, "role", None) == "norm":
                return user
    return None


def _embedding_and_factor(product: fx.Node, wired: WiredGraph) -> tuple[fx.Node, float] | None:
    """The call of an embedding and the number it is multiplied by, if `product` is just that."""
    if product.target is not operator.mul:
        return None
    for call, factor in (product.args, reversed(product.args)):
        is_call = isinstance(call, fx.Node) and call.op == "call_module" and len(call.users) == 1
        if is_call and isinstance(factor, int | float) and len(call.args) == 1:
            block = wired.blocks.get(str(call.target))
            if block is not None and "factor" in inspect.signature(block.forward).parameters:
                return call, float(factor)
    return None
