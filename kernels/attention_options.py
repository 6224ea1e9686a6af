"""What attention does besides the softmax over q·k: one value that all the kernels take."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class AttentionOptions:
    """The options of one causal attention; tensors hold this rank's query heads.

    A logit is `softcap(scale * q·k) + bias`; the softmax runs over the keys that a query sees and
    the sink of its head. Positions count from the first token of the sequence.
    """

    scale: float
    window: int | None = None  # a query sees keys fewer than this many tokens back (1: itself)
    chunk: int | None = None  # it sees keys of its own chunk, position // chunk (Llama 4, 2025)
    softcap: float | None = None  # logits become softcap * tanh(logits / softcap) (Gemma 2, 2024)
    # [H] logit of one more key a head whose value is nothing: it takes its share of the softmax
    # (gpt-oss, 2025). Scaling the output by sigmoid(logsumexp - sink) is the same.
    sinks: torch.Tensor | None = None
    # [H] bias of slope * (key position - query position) (ALiBi: Press et al., 2022). Counting from
    # the query instead of the first token changes no softmax and keeps the numbers small.
    alibi_slopes: torch.Tensor | None = None
    # Falcon's ALiBi: slope, key position and their product are rounded to bfloat16, and the bias
    # joins q·k before the scale: scale * bfloat16(slope * key position).
    alibi_rounded: bool = False
    # Values are the first `value_dim` numbers of the keys and come in no tensor of their own
    # (latent attention: DeepSeek-V2, 2024).
    value_dim: int | None = None
    # What 1 stands for in a cache of 8-bit keys and values; 1 in caches of other dtypes.
    k_scale: float = 1.0
    v_scale: float = 1.0

    @property
    def reach(self) -> int | None:
        """How many keys a query may see at most, itself included; None: all of them."""
        if self.window is None or self.chunk is None:
            return self.chunk if self.window is None else self.window
        return min(self.window, self.chunk)
