"""Into how many parts the Triton paged attention cuts contexts, and the memory that takes.

A launch is worth its waves: programs beyond what runs side by side start when others end, and a
last wave that is half empty takes as long as a full one (the rule of FlashAttention's num_splits:
Dao et al., 2023; "wave quantization"). Plain arithmetic, without Triton or a device.
"""

from __future__ import annotations

from functools import lru_cache

from assembler.kernels.gpu import GPU
from assembler.kernels.paged_attention_tiling import MIN_KEYS_PER_SPLIT, Heads, choose_tiling

MAX_SPLITS = 64
MAX_WAVES = 8  # of programs that a launch is cut into: more level nothing out, and take memory
# In the time that a program takes for a key: what it takes to start, and a second launch to merge.
STARTUP_KEYS, MERGE_KEYS = 64, 128
LINE_KEYS = 2  # a query line of a split, written and read again in float32
RAGGED_WAVES = 2  # wanted where contexts may differ, while parts of the longest keep RAGGED_KEYS
RAGGED_KEYS = 1024
TOLERANCE = 1 / 16  # how much longer fewer splits may take than the best number


@lru_cache(maxsize=1024)
def choose_splits(
    programs: int, max_keys: int, slots: int, *, lines: int = 1, ragged: bool = False
) -> int:
    """Into how many parts a step cuts each context, as far as that has keys enough.

    The fewest that end nearly as early as any number would, were all contexts as long as the
    longest. If they may not be (`ragged`) there are two waves at least, so that a long one
    is shared by all of the device.

    Args:
        programs: of the launch without splitting.
        max_keys: of the longest context, or what a window shows of it.
        slots: programs that the device runs side by side.
        lines: queries times heads of a program.
    """
    most = min(MAX_SPLITS, max_keys // MIN_KEYS_PER_SPLIT, MAX_WAVES * slots // programs)
    if most <= 1:
        return 1
    fewest = 1
    if ragged:
        fewest = max(1, min(-(-RAGGED_WAVES * slots // programs), max_keys // RAGGED_KEYS, most))
    times = {n: keys_time(programs, max_keys, slots, n, lines) for n in range(fewest, most + 1)}
    enough = min(times.values()) * (1 + TOLERANCE)
    return next(n for n, time in times.items() if time <= enough)


def keys_time(programs: int, max_keys: int, slots: int, splits: int, lines: int = 1) -> int:
    """How long a launch takes whose contexts are all `max_keys` long, in times of a key."""
    waves = -(-programs * splits // slots)
    keys = -(-max_keys // splits) + STARTUP_KEYS
    if splits == 1:
        return waves * keys
    return waves * (keys + LINE_KEYS * lines) + MERGE_KEYS


def split_bytes(heads: Heads, gpu: GPU) -> int:
    """The most bytes that the splits of a launch keep until they are merged, whatever the step.

    A launch that is split has MAX_WAVES of programs at most, each of which keeps its lines and
    their sums of weights in float32.
    """
    most = 0
    for decode in (True, False):
        tiling = choose_tiling(heads, gpu, decode)
        lines = tiling.tiles.BLOCK_Q * tiling.tiles.HEADS
        most = max(most, MAX_WAVES * tiling.slots(gpu) * lines * (heads.head_dim_v + 1) * 4)
    return most
