"""What must hold before any test module is imported."""

import os

# Triton reads this when it is first imported: its kernels then run on the CPU, in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# torch reads this when it is first imported. The models are tiny: more threads only wait for each
# other, and the suite then takes more than twice as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
