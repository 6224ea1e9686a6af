"""What must hold before any test module is imported."""

import os

import pytest

# Triton reads this when it is first imported: its kernels then run on the CPU, in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# torch reads this when it is first imported. The models are tiny: more threads only wait for each
# other, and the suite then takes more than twice as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of a GPU run where there is one, and where Triton compiles: TRITON_INTERPRET=0."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA or HIP device")
    if os.environ["TRITON_INTERPRET"] != "0":
        pytest.skip("Triton interprets its kernels: set TRITON_INTERPRET=0")
