"""Compile every Triton kernel for devices that are not here; print what came out as JSON lines.

Run as a script, in a process of its own: Triton's compiler and its interpreter exclude each other.
The kernels are compiled for exactly what their launchers pass: a launch is recorded, not run.
"""

from __future__ import annotations

import json
import re
import sys

import torch
from triton import compile as triton_compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from assembler.kernels import grouped_mlp_triton, paged_attention_triton, store_kv_triton
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating
from assembler.kernels.paged_batch import PagedBatch

TYPE_NAMES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
LAUNCH_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class RecordedKernel:
    """Stands in for a kernel: `kernel[grid](...)` notes what would be compiled."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.sources = []

    def __getitem__(self, grid):
        assert all(size > 0 for size in grid)
        return self._record

    def _record(self, *arguments, **named):
        options = {name: named.pop(name) for name in LAUNCH_OPTIONS if name in named}
        signature, divisible = {}, {}
        for index, (name, value) in enumerate(zip(self.kernel.arg_names, arguments, strict=False)):
            if isinstance(value, torch.Tensor):
                signature[name] = TYPE_NAMES[value.dtype]
                divisible[(index,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "i32" if isinstance(value, int) else "fp32"
        assert {*signature, *named} == {*self.kernel.arg_names}
        signature = {name: signature.get(name, "constexpr") for name in self.kernel.arg_names}
        self.sources.append((ASTSource(self.kernel, signature, named, divisible), options))


def record_attention(query_lens, dtype, head_dim, heads, splits=1, **options):
    """The kernels that `paged_attention_triton` would launch for such a step."""
    latent = options.get("value_dim") is not None
    k_cache = torch.empty(8, 16, 1 if latent else 2, head_dim, dtype=dtype)
    batch = PagedBatch(
        slot_mapping=torch.zeros(sum(query_lens), dtype=torch.int64),
        page_table=torch.zeros(len(query_lens), 4, dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
        context_lens=torch.tensor(query_lens, dtype=torch.int32),
        max_seqlen_q=max(query_lens),
        max_context_len=64,
    )
    attention = RecordedKernel(paged_attention_triton.paged_attention_kernel)
    merge = RecordedKernel(paged_attention_triton.merge_splits_kernel)
    real = (attention.kernel, merge.kernel)
    try:
        paged_attention_triton.paged_attention_kernel = attention
        paged_attention_triton.merge_splits_kernel = merge
        paged_attention_triton.paged_attention_triton(
            torch.empty(sum(query_lens), heads, head_dim, dtype=dtype),
            k_cache,
            None if latent else k_cache,
            batch,
            AttentionOptions(scale=0.1, **options),
            splits=splits,
        )
    finally:
        paged_attention_triton.paged_attention_kernel = real[0]
        paged_attention_triton.merge_splits_kernel = real[1]
    return attention.sources + merge.sources


def record_store():
    """The kernel that `store_kv_triton` would launch."""
    store = RecordedKernel(store_kv_triton.store_kv_kernel)
    tokens = torch.empty(3, 3, 40, dtype=torch.bfloat16)
    cache = torch.empty(4, 16, 3, 40, dtype=torch.bfloat16)
    try:
        store_kv_triton.store_kv_kernel = store
        store_kv_triton.store_kv_triton(tokens, tokens, cache, cache, torch.zeros(3).long())
    finally:
        store_kv_triton.store_kv_kernel = store.kernel
    return store.sources


def record_experts(num_tokens, dtype, **about):
    """The kernels that `grouped_mlp_triton` would launch for so many tokens."""
    experts, hidden, inner = 8, 256, 192
    weights = ExpertWeights(
        torch.empty(experts, 2 * inner, hidden, dtype=dtype),
        torch.empty(experts, hidden, inner, dtype=dtype),
        torch.empty(experts, 2 * inner, dtype=dtype),
        torch.empty(experts, hidden, dtype=dtype),
    )
    names = ("experts_up_kernel", "experts_down_kernel")
    kernels = [RecordedKernel(getattr(grouped_mlp_triton, name)) for name in names]
    try:
        for name, kernel in zip(names, kernels, strict=True):
            setattr(grouped_mlp_triton, name, kernel)
        grouped_mlp_triton.grouped_mlp_triton(
            torch.empty(num_tokens, hidden, dtype=dtype),
            torch.arange(2).repeat(num_tokens, 1),
            torch.empty(num_tokens, 2),
            weights,
            Gating(act=torch.sigmoid, **about),
        )
    finally:
        for name, kernel in zip(names, kernels, strict=True):
            setattr(grouped_mlp_triton, name, kernel.kernel)
    return [source for kernel in kernels for source in kernel.sources]


def main(backend: str, architecture: str) -> None:
    target = GPUTarget(
        backend,
        int(architecture) if backend == "cuda" else architecture,
        32 if backend == "cuda" else 64,
    )
    per_head = torch.empty(64)
    sources = [
        *record_store(),
        *record_attention([1, 1], torch.bfloat16, 64, heads=6, splits=4, window=100, softcap=30.0),
        *record_attention([1, 70], torch.float16, 80, heads=8),
        *record_attention([5, 70], torch.float32, 128, heads=2, softcap=30.0),
        *record_attention([1, 1], torch.bfloat16, 576, heads=128, value_dim=512),
        *record_attention([1, 70], torch.bfloat16, 576, heads=16, value_dim=512),
        *record_attention([1, 70], torch.bfloat16, 64, heads=64, sinks=per_head, window=128),
        *record_attention(
            [1, 70], torch.float16, 64, heads=8, alibi_slopes=per_head, alibi_rounded=True, chunk=64
        ),
        *record_attention([1, 70], torch.float32, 576, heads=16, value_dim=512),
        *record_experts(1, torch.bfloat16, name="silu"),
        *record_experts(700, torch.bfloat16, name="quick_gelu", limit=7.0, up_offset=1.0),
        *record_experts(70, torch.float32, name="gelu"),
    ]
    for source, options in sources:
        compiled = triton_compile(source, target=target, options=options)
        assembly = compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
        report = {
            "kernel": source.name,
            "shared": compiled.metadata.shared,
            "matrix_instructions": len(re.findall(r"mma\.sync|wgmma\.mma|v_mfma", assembly)),
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
