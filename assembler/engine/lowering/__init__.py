"""From a model's graphs to a program of the CPU kernels: an instruction for each thing done.

The lowering walks the graphs that the wiring equations became, whatever the architecture, and knows
the blocks by their class. A block or an option that has no instruction runs in torch, between two
parts of the program.
"""

from assembler.engine.lowering.graph import lower
from assembler.engine.lowering.program import NotLowered, Program

__all__ = ["NotLowered", "Program", "lower"]
