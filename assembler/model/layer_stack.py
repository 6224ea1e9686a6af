"""The layers of a model: modules over graphs that many of them share."""

from __future__ import annotations

from torch import fx, nn

# What compiling a graph leaves on the module besides its class's `forward`.
_COMPILED = ("_code", "_lineno_map", "_prologue_start")


class LayerModule(fx.GraphModule):
    """One layer. All layers of a kind run the code that was generated for the first.

    It saves the time of generating it again, and what `torch.compile` makes of one layer serves the
    others. Recompiling a layer whose graph was edited generates code for that layer, as ever.
    """

    def __init__(
        self,
        root: nn.Module | dict,
        graph: fx.Graph,
        class_name: str = "GraphModule",
        twin: LayerModule | None = None,
    ) -> None:
        """As `fx.GraphModule`; `twin` is an earlier layer with the same graph, if there is one."""
        self.__dict__["_twin"] = twin
        super().__init__(root, graph, class_name)
        del self.__dict__["_twin"]

    def recompile(self) -> fx.graph.PythonCode | None:
        """Generate the code of the graph; while the module is made, take over its twin's."""
        twin = self.__dict__.get("_twin")
        if twin is None:
            return super().recompile()
        self.__dict__.update({name: twin.__dict__[name] for name in _COMPILED})
        type(self).forward = type(twin).forward
        return None


class LayerStack(nn.ModuleList):
    """The layers, run one after the other: `(*streams, ctx) -> streams`."""

    def forward(self, *args):
        *state, ctx = args
        for layer in self:
            out = layer(*state, ctx)
            state = out if isinstance(out, tuple) else (out,)
        return out
