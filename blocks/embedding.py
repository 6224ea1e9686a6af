"""The two ends of a model: token embeddings, and the head that scores the vocabulary.

Over a tensor-parallel group the vocabulary is split: each rank embeds the tokens of its share and
the results are summed; each rank scores its share and the logits are gathered. The shares of a
vocabulary that the ranks do not divide differ by one row.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from assembler.blocks.context import BuildContext, ForwardContext
from assembler.blocks.parallel import Part, ShardDim
from assembler.errors import SpecError
from assembler.kernels.embedding import embed


class Embedding(nn.Module):
    """Token embeddings.

    Args:
        scale: Multiplies the embeddings, rounded to the weight's dtype first (Gemma: sqrt(hidden)).
        width: Numbers a token; null means hidden_size. Another width is for equations to change.
    """

    role: ClassVar[str] = "embedding"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        scale: float = 1.0,
        width: Annotated[int, Field(gt=0)] | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.tp = ctx.tp
        self.vocab = Part("vocab", ctx.vocab_size)
        (self.rows,) = ctx.tp.local_rows((self.vocab,), ctx.path)
        self.weight = nn.Parameter(torch.empty(len(self.rows), width or ctx.hidden_size))

    def forward(self, tokens: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        """Token ids [...] -> [..., width].

        `factor` is what an equation multiplies them by, put here by the compiler.
        """
        if self.tp.size == 1:
            return embed(tokens, self.weight, self.scale, factor)
        # Of each token one rank has the row and the others zeros.
        return self.tp.all_reduce(embed(tokens, self.weight, self.scale, factor, self.rows))

    def shard_dims(self) -> dict[str, ShardDim]:
        """The vocabulary is split."""
        shape = (self.vocab.size, self.weight.shape[1])
        return {"weight": ShardDim("vocab", shape, 0, (self.vocab,))}

    def extra_repr(self) -> str:
        return f"{len(self.rows)} of {self.vocab.size}, {self.weight.shape[1]}, scale={self.scale}"


class LMHead(nn.Module):
    """Scores of every vocabulary entry for the rows whose logits are wanted.

    A tied head has no weight until `tie` lends it the embedding's.

    Args:
        tied: Whether the head shares the token embedding's weight (`tie_word_embeddings`).
        bias: Whether a bias is added to the logits (GPT-J, Phi).
        width: Width of the stream it reads; null means hidden_size.
    """

    role: ClassVar[str] = "head"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        tied: bool = False,
        bias: bool = False,
        width: Annotated[int, Field(gt=0)] | None = None,
    ) -> None:
        super().__init__()
        self.tied = tied
        self.tp = ctx.tp
        self.path = ctx.path
        self.width = width or ctx.hidden_size
        self.vocab = Part("vocab", ctx.vocab_size)
        (rows,) = ctx.tp.local_rows((self.vocab,), ctx.path)
        weight = None if tied else nn.Parameter(torch.empty(len(rows), self.width))
        self.register_parameter("weight", weight)
        self.register_parameter("bias", nn.Parameter(torch.empty(len(rows))) if bias else None)

    def tie(self, embedding: Embedding) -> None:
        """Use `embedding.weight` itself; repeat it after either parameter was replaced.

        Raises `SpecError` if the two have different widths.
        """
        assert self.tied, "this head has its own weight"
        if embedding.weight.shape[1] != self.width:
            raise SpecError(
                f"{self.path}: a tied head of width {self.width} cannot use an embedding of width "
                f"{embedding.weight.shape[1]}: give both the same `width`"
            )
        self.weight = embedding.weight

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """[..., tokens, width] -> logits [..., rows, vocab]; rows are `ctx.logit_rows`, or all."""
        if ctx.logit_rows is not None:
            x = x.index_select(-2, ctx.logit_rows)
        return self.tp.all_gather(F.linear(x, self.weight, self.bias), self.vocab)

    def shard_dims(self) -> dict[str, ShardDim]:
        """The vocabulary is split; the weight of a tied head is the embedding's to declare."""
        dims = {}
        if not self.tied:
            shape = (self.vocab.size, self.width)
            dims["weight"] = ShardDim("vocab", shape, 0, (self.vocab,))
        if self.bias is not None:
            dims["bias"] = ShardDim("vocab", (self.vocab.size,), 0, (self.vocab,))
        return dims

    def extra_repr(self) -> str:
        return f"{self.width}, {self.vocab.size}, tied={self.tied}, bias={self.bias is not None}"
