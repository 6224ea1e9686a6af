"""What an engine has done since it was made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EngineStats:
    """Counts over all requests. Only the engine writes them."""

    num_steps: int = 0
    num_graph_steps: int = 0  # of these, decodes that were replayed from a CUDA graph
    graph_memory: int = 0  # bytes of the device that the graphs take
    num_prefill_tokens: int = 0  # tokens run of prompts, and of what was computed again
    num_decode_tokens: int = 0  # generated tokens run, one a sequence and step
    num_generated_tokens: int = 0
    num_started_tokens: int = 0  # of all sequences that have started, again after preemptions
    num_cached_tokens: int = 0  # of these, found in the cache and not computed
    num_preemptions: int = 0
    # Seconds of all steps; those of a step that ran both kinds go to each by its share of tokens.
    prefill_time: float = 0.0
    decode_time: float = 0.0

    @property
    def cache_hit_rate(self) -> float:
        """Which share of the tokens that were to be computed was found in the cache."""
        return self.num_cached_tokens / max(self.num_started_tokens, 1)
