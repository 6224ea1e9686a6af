"""Tensors in huge pages: apart, aligned, alive as long as they are used, and no more memory."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch

from assembler.huge_pages import BLOCK, PAGE, HugePages

linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="not Linux")
SHAPES = ((3, 5), (1000, 1001), (0, 4), (), (7,), (BLOCK // 4 + 1,), (2, 3, 4))


def test_tensors_are_apart_and_aligned():
    memory = HugePages(2 * BLOCK)
    tensors = [memory.empty(shape, torch.bfloat16) for shape in SHAPES]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, (tensor, shape) in enumerate(zip(tensors, SHAPES, strict=True)):
        assert tensor.shape == shape and tensor.is_contiguous()
        assert bool((tensor == number).all())
        assert tensor.data_ptr() % 64 == 0
        tensor.requires_grad_()  # as parameters may


@linux
def test_a_block_goes_with_its_last_tensor():
    memory = HugePages(4 * PAGE)
    first, second = (memory.empty((PAGE // 2,), torch.float32) for _ in range(2))
    place = first.data_ptr()
    del first, memory
    gc.collect()
    second.fill_(1)
    assert _is_mapped(place), "the other tensor of the block is in use"
    del second
    gc.collect()
    assert not _is_mapped(place)


@linux
def test_the_kernel_is_asked_for_huge_pages():
    tensor = HugePages(4 * PAGE).empty((4 * PAGE,), torch.uint8)
    assert tensor.data_ptr() % PAGE == 0
    assert " hg" in _flags(tensor.data_ptr())
    small = HugePages(100).empty((100,), torch.uint8)
    assert " hg" not in _flags(small.data_ptr())


def test_too_much_is_a_memory_error():
    with pytest.raises((MemoryError, RuntimeError), match=r"(?i)alloc"):
        HugePages(1 << 60).empty((1 << 60,), torch.uint8)


def _is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False


def _flags(address: int) -> str:
    """The VmFlags of the mapping that holds this address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head:
            start, end = (int(bound, 16) for bound in head.split("-"))
            inside = start <= address < end
        elif inside and head == "VmFlags:":
            return line
    raise AssertionError("not mapped")
