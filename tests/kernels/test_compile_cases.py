"""What is compiled ahead of time covers what is launched: tilings, options and both kinds of steps.

Nothing is compiled here: calls are noted, and their tiles worked out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import run
from sys import executable

import compile_cases
import pytest

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_tiling import Heads, choose_tiling

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


def shape(heads: Heads, gpu, decode: bool) -> tuple[object, ...]:
    """What a tiling is compiled for, but for how rows are shared by heads and queries."""
    tiling = choose_tiling(heads, gpu, decode)
    tiles = tiling.tiles._replace(HEADS=0, BLOCK_Q=0)
    sizes = heads.itemsize, heads.cache_itemsize, heads.latent
    return decode, *sizes, tiles, tiling.num_warps, tiling.num_stages


def calls(architecture: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Heads, bool, object]]:
    """Heads, whether it decodes, and the options of each attention that is compiled."""
    noted = []

    def note(q, k_cache, v_cache, batch, options, **_):
        heads = Heads(
            group=q.shape[1] // k_cache.shape[2],
            head_dim=q.shape[2],
            head_dim_v=options.value_dim if v_cache is None else v_cache.shape[3],
            latent=v_cache is None,
            itemsize=q.element_size(),
            cache_itemsize=k_cache.element_size(),
        )
        noted.append((heads, batch.is_decode, options))

    monkeypatch.setattr(compile_cases, "paged_attention_triton", note)
    cases: dict[str, Callable[[], None]] = dict(compile_cases.attention_cases(architecture))
    for label, case in cases.items():
        if not label.startswith("store"):
            case()
    return noted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tiling_of_what_models_have_is_compiled(architecture, monkeypatch):
    gpu = GPUS[architecture]
    compiled = {shape(heads, gpu, decode) for heads, decode, _ in calls(architecture, monkeypatch)}
    missing = {
        (heads, decode)
        for heads in compile_cases.MODEL_HEADS
        for decode in (True, False)
        if shape(heads, gpu, decode) not in compiled
    }
    assert not missing


def test_every_option_is_compiled_for_both_kinds_of_steps(monkeypatch):
    plain = AttentionOptions(0.1)
    for decode in (True, False):
        asked = [options for _, d, options in calls("sm_90", monkeypatch) if d == decode]
        for name in ("window", "chunk", "softcap", "sinks", "alibi_slopes", "alibi_rounded"):
            default = getattr(plain, name)
            assert any(getattr(options, name) is not default for options in asked), name


@pytest.mark.slow
def test_each_variant_is_reported_once_and_a_mixed_step_is_two():
    code = (
        "import torch\n"
        "from ahead_of_time import cases_of, distinct, variant\n"
        "from recorded_launches import recorded_launches\n"
        "cases = cases_of('sm_90')\n"
        "def variants(label):\n"
        "    with recorded_launches() as launches:\n"
        "        cases[label](), cases[label]()\n"
        "    found = [variant(launch) for launch in distinct(launches)]\n"
        "    assert 2 * len(found) == len(launches) and len(found) == len(set(found))\n"
        "    return found\n"
        "mixed = variants('mixed 4 × 128')\n"
        "assert len(mixed) == 2 and mixed[0] != mixed[1]\n"
        "assert mixed == variants('decode 4 × 128') + variants('prefill 4 × 128')\n"
        "assert len(variants('decode 4 × 128, split')) == 2\n"
    )
    here = Path(__file__).parent
    environment = {"TRITON_INTERPRET": "0", "PYTHONPATH": f"{here}:{here.parents[1]}"}
    done = run([executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
