"""Measuring an engine: workloads, the latency of tokens, and the kernels of a step.

The command is `assembler.bench`.
"""
