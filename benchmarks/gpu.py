"""What this project does on a GPU: first whether it is right, then how fast it is.

    python benchmarks/gpu.py [--only checks kernels models] [--json results.json]
    python benchmarks/gpu.py --smoke           # tiny, on a CPU in Triton's interpreter: no numbers

One table: every kernel beside the copy bandwidth, the products or torch's attention that the same
process measured, whole models beside the bytes that they have to read, and what is aimed at. If a
check fails, nothing is timed and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PARTS = ("checks", "kernels", "models")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, nothing timed")
    parser.add_argument("--models", nargs="+", default=["qwen3-0.6b", "qwen3-8b"])
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args(argv)
    if options.smoke and options.device == "cuda":
        options.device = "cpu"
    if options.device == "cpu":  # read when Triton is imported
        os.environ["TRITON_INTERPRET"] = "1"
    return run(options)


def run(options: argparse.Namespace) -> int:
    """All that `options` name; the exit status."""
    import torch
    from gpu_timing import FAILED, Clock, Result, measured_roof

    device = torch.device(options.device)
    if device.type != "cuda" and not options.smoke:
        print("nothing is timed on a CPU: add --smoke", file=sys.stderr)
        return 2
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA or HIP device: --smoke runs tiny shapes on a CPU", file=sys.stderr)
        return 2
    results = Results(device, options)
    failed = False
    clock = Clock(device, options.smoke)
    with torch.no_grad():
        if "checks" in options.only:
            failed = not _check(device, options.smoke, results)
        if not failed and {"kernels", "models"} & {*options.only}:
            roof = measured_roof(clock)
            if roof is not None:
                copied = f"{roof.bytes_per_second / 1e12:.2f} TB/s"
                product = f"{roof.flops_per_second / 1e12:.0f} TFLOP/s"
                results.append(Result("device", roof.name, note=f"copy {copied}, {product}"))
            _measure(options, clock, roof, results)
    return int(failed or any(row.note.startswith(FAILED) for row in results))


class Results(list):
    """The rows; the file is written with each, so that a run that is cut short leaves it."""

    def __init__(self, device: Any, options: argparse.Namespace) -> None:
        super().__init__()
        self._device, self._options = device, options

    def append(self, row: Any) -> None:
        super().append(row)
        if self._options.json:
            report = _report(self._device, self._options.smoke, self)
            self._options.json.write_text(json.dumps(report, indent=1))


def _check(device: Any, smoke: bool, results: Results) -> bool:
    """Run and print the checks; whether none failed."""
    import torch
    from gpu_checks import checks
    from gpu_model_checks import model_checks
    from gpu_timing import FAILED, Result

    torch.manual_seed(0)
    start, failures, count = time.perf_counter(), 0, 0
    for group in (checks, model_checks):
        for name, error_of, bound in group(device, smoke):
            count += 1
            try:
                error = error_of()
                failed, said = not error <= bound, f"error {error:.2g}, at most {bound:.2g}"
            except Exception as raised:
                traceback.print_exc()
                failed, said = True, f"{type(raised).__name__}: {raised}"
            print(f"{FAILED if failed else 'ok'}  {name}: {said}", flush=True)
            if failed:
                failures += 1
                results.append(Result("check", name, note=f"{FAILED}: {said}"))
    seconds = time.perf_counter() - start
    note = f"{count - failures} of {count} passed"
    results.append(Result("check", "kernels and tiny models", note=note))
    print(f"{note} in {seconds:.0f} s", flush=True)
    return not failures


def _measure(options: argparse.Namespace, clock: Any, roof: Any, results: Results) -> None:
    from gpu_kernels import kernel_rows
    from gpu_models import model_rows

    _print_head()
    for row in results:
        _print(row)
    rows: list[Iterable[Any]] = []
    if "kernels" in options.only:
        rows.append(kernel_rows(clock, roof))
    if "models" in options.only:
        rows.append(model_rows(clock, roof, options.models))
    for part in rows:
        for row in part:
            results.append(row)
            _print(row)


def _print_head() -> None:
    heads = ("group", "what", "time", "share", "target", "of roof", "")
    print("{:<18} {:<38} {:>11} {:>8} {:>7} {:>8} {}".format(*heads))


def _print(row: Any) -> None:
    """The share, its target and the verdict go together; the share of the roof is beside them."""
    took = "" if row.seconds is None else _time(row.seconds)
    share, target, roof = (
        "" if number is None else f"{number:.{digits}%}"
        for number, digits in ((row.share, 1), (row.target, 0), (row.roof_share, 1))
    )
    about = "; ".join(text for text in (row.verdict, row.of and f"of {row.of}", row.note) if text)
    columns = f"{took:>11} {share:>8} {target:>7} {roof:>8}"
    print(f"{row.group:<18} {row.name:<38} {columns} {about}", flush=True)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _report(device: Any, smoke: bool, results: list[Any]) -> dict[str, Any]:
    """The rows, and all that they depend on."""
    import torch

    versions = {"python": platform.python_version()}
    for package in ("torch", "triton", "transformers", "flash-attn"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    on_gpu = device.type == "cuda"
    return {
        "measured": not smoke,
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU (Triton's interpreter)",
        "cuda": torch.version.cuda if on_gpu else None,
        "hip": torch.version.hip if on_gpu else None,
        "versions": versions,
        "rows": [row.as_json() for row in results],
    }


if __name__ == "__main__":
    sys.exit(main())
