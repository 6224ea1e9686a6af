"""Keys and values of 8 bits: float8 e4m3 (OCP; "fn": no infinities), the largest number is 448.

Triton's own conversions exist on some devices only, and its interpreter rounds otherwise. Where a
kernel cannot count on the hardware it takes the bits apart itself, with the same results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0


@triton.jit
def from_e4m3(bits):
    """The numbers behind uint8 `bits`, in float16, exactly; NaN stays NaN."""
    wide = bits.to(tl.int16)
    # Exponent and mantissa at their places in a float16, whose exponent counts from 15, not 7: the
    # product makes up for it, and turns subnormals into normal numbers.
    number = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    number = tl.where((wide & 0x7F) == 0x7F, 0x7E00, number).to(tl.int16)
    return number.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def to_e4m3(numbers):
    """float32 `numbers` as uint8 bits: rounded to nearest even, beyond 448 cut to it; NaN kept."""
    bits = numbers.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    magnitude = bits & 0x7FFFFFFF
    # Normal numbers: 20 of the 23 mantissa bits go, and the exponent counts from 7, not 127.
    normal = (magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20
    # Below 2**-6 a step is 2**-9: the sum with 2**14 rounds there, and its last bits are the steps.
    steps = magnitude.to(tl.float32, bitcast=True) + 16384.0
    subnormal = steps.to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, subnormal, normal - (120 << 3))
    code = tl.where(magnitude >= 0x43E00000, 0x7E, code)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (sign | code).to(tl.uint8)
