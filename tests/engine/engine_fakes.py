"""Models and a tokenizer small enough to predict, for the tests of the engine."""

from __future__ import annotations

import random
import zlib
from functools import partial

import torch
from torch import nn

from assembler.blocks.context import CacheSpec, ForwardContext
from assembler.engine.kv_cache import length_border
from assembler.engine.llm_engine import LLMEngine
from assembler.engine.model_runner import ModelRunner
from assembler.engine.outputs import RequestOutput
from assembler.engine.page_pool import PagePool
from assembler.engine.sampler import Sampler
from assembler.engine.scheduler import Scheduler

VOCAB = 64


class _Cache(nn.Module):
    """Stands for an attention block: owns cache 0, three numbers a token."""

    cache_index = 0

    def __init__(self, length_border: int | None = None) -> None:
        super().__init__()
        self.length_border = length_border

    def cache_spec(self) -> CacheSpec:
        return CacheSpec(num_kv_heads=1, head_dim=3)


def logits_after(context: list[tuple[int, int, int]]) -> torch.Tensor:
    """[VOCAB] logits that depend on every (token, position, sequence length) of `context`."""
    seed = zlib.crc32(repr(context).encode())
    return 3.0 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


class MemoryModel(nn.Module):
    """Its logits are a hash of what the paged cache holds: any wrong page, slot or length shows.

    Unless `by_length`, the lengths of the sequences do not enter.
    """

    def __init__(self, *, by_length: bool = True) -> None:
        super().__init__()
        self.attention = _Cache(length_border=0 if by_length else None)
        self.by_length = by_length
        self.steps: list[list[int]] = []  # query lengths of each step that ran

    def forward(self, input_ids: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        paged = ctx.paged
        keys, values = ctx.kv_caches[0]
        page_size = keys.shape[1]
        lengths = ctx.sequence_lengths * self.by_length
        stored = torch.stack([input_ids, ctx.positions, lengths], dim=-1).float()
        keys.view(-1, 3)[paged.slot_mapping] = stored
        values.view(-1, 3)[paged.slot_mapping] = -stored
        starts = paged.cu_seqlens_q.tolist()
        self.steps.append(paged.cu_seqlens_q.diff().tolist())
        rows = range(len(input_ids)) if ctx.logit_rows is None else ctx.logit_rows.tolist()
        out = [torch.empty(0, VOCAB)]
        for row in rows:
            sequence = next(s for s in range(len(starts)) if row < starts[s + 1])
            length = int(paged.context_lens[sequence]) - (starts[sequence + 1] - 1 - row)
            position = torch.arange(length)
            pages = paged.page_table[sequence].long()[position // page_size]
            read = keys[pages, position % page_size, 0]
            assert torch.equal(read, -values[pages, position % page_size, 0])
            context = [tuple(token) for token in read.long().tolist()]
            assert [p for _, p, _ in context] == position.tolist(), "another token's slot was read"
            out.append(logits_after(context)[None])
        return torch.cat(out)


def greedy_reference(prompt: list[int], count: int, *, by_length: bool = True) -> list[int]:
    """What MemoryModel generates greedily, worked out without engine, pages or batches."""
    token_ids = list(prompt)
    for _ in range(count):
        context = [(t, p, max(len(prompt), p + 1) * by_length) for p, t in enumerate(token_ids)]
        token_ids.append(int(logits_after(context).argmax()))
    return token_ids[len(prompt) :]


class ScriptedModel(nn.Module):
    """The token after position p is script[p], whatever the prompt; NaN where that is None.

    Behind its end, where a step that overlaps may run a token more, it is token 1.
    """

    def __init__(self, script: list[int | None]) -> None:
        super().__init__()
        self.attention = _Cache()
        self.script = script

    def forward(self, input_ids: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        positions = ctx.positions if ctx.logit_rows is None else ctx.positions[ctx.logit_rows]
        logits = torch.zeros(len(positions), VOCAB)
        for row, position in enumerate(positions.tolist()):
            token_id = self.script[position] if position < len(self.script) else 1
            if token_id is None:
                logits[row, 3] = torch.nan
            else:
                logits[row, token_id] = 50.0
        return logits


class FakeTokenizer:
    """Token i is PIECES[i]; token 0 is the end of sequence and is no text."""

    PIECES = ("", "a", "b", "c", "ab", "bc", "xy", "z", " ", "He", "llo", "\n\n")
    eos_token_ids = frozenset({0})
    eos_token_id = 0

    def __init__(self, eager: bool = False) -> None:
        self.eager = eager

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.PIECES.index(char) for char in text]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        special = "" if skip_special_tokens else "<eos>"
        return "".join(self.PIECES[i] or special for i in token_ids)

    def detokenizer(self, skip_special_tokens: bool = True) -> FakeDetokenizer:
        return FakeDetokenizer(self, skip_special_tokens)


class FakeDetokenizer:
    """Gives a token's text out when the next token arrives, like one that waits for whole bytes.

    An eager one gives it out at once.
    """

    def __init__(self, tokenizer: FakeTokenizer, skip_special_tokens: bool) -> None:
        self.decode = partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        self.eager = tokenizer.eager
        self.held = ""

    def push(self, token_ids: list[int]) -> str:
        text = self.decode(token_ids)
        if self.eager:
            return text
        out, self.held = self.held, text
        return out

    def finish(self) -> str:
        out, self.held = self.held, ""
        return out


class BreakingTokenizer(FakeTokenizer):
    """Cannot decode token 7."""

    def detokenizer(self, skip_special_tokens=True):
        made = super().detokenizer(skip_special_tokens)
        push = made.push

        def checked(token_ids):
            if 7 in token_ids:
                raise KeyError("no piece 7")
            return push(token_ids)

        made.push = checked
        return made


def make_engine(
    model: nn.Module,
    *,
    num_pages: int = 400,
    page_size: int = 4,
    max_num_batched_tokens: int = 512,
    max_num_seqs: int = 64,
    max_model_len: int = 200,
    tokenizer: FakeTokenizer | None = None,
    shuffle_pages: int | None = None,
    seed: int | None = 0,
    prefix_caching: bool = True,
    chunked_prefill: bool = True,
    overlap: bool = False,
) -> LLMEngine:
    """An engine over a fake model; `shuffle_pages` is the seed of a random order of free pages."""
    pool = PagePool(num_pages, page_size)
    if shuffle_pages is not None:
        pages = pool.allocate(num_pages)
        random.Random(shuffle_pages).shuffle(pages)
        pool.free(pages)
    scheduler = Scheduler(
        pool,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        chunked_prefill=chunked_prefill,
    )
    runner = ModelRunner(
        model, None, num_pages=num_pages, page_size=page_size, sampler=Sampler(seed)
    )
    for cache in runner.kv_caches:
        for tensor in cache:
            tensor.fill_(torch.nan)  # whoever reads what was never written gets NaN
    return LLMEngine(
        runner,
        scheduler,
        tokenizer,
        vocab_size=VOCAB,
        max_model_len=max_model_len,
        prefix_caching=prefix_caching,
        length_border=length_border(model),
        overlap=overlap,
    )


def run(engine: LLMEngine) -> dict[str, RequestOutput]:
    """Step until nothing is left; the last output of each request."""
    outputs = {}
    while not engine.is_finished():
        for output in engine.step():
            outputs[output.request_id] = output
        engine.check_integrity()
    engine.check_integrity()
    return outputs
