"""Whole engines run on the tiny models that the architectures are compared on."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "architectures"))
