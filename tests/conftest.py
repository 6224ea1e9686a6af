"""What must hold before any test module is imported."""

import os

# Triton reads this when it is first imported: its kernels then run on the CPU, in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
