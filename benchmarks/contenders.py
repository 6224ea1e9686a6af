"""The engines that `engine.py` compares, each a process in an environment of its own.

Engines want each other's dependencies in versions that exclude one another, and none of them should
be importable where ours is. So each has a virtual environment, and a worker there (see
`workers/protocol.py`) that this module starts and asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).parent / "workers"
# A checkout need not be installed.
_OURS = {"PYTHONPATH": str(Path(__file__).parents[1])}


@dataclass(frozen=True)
class Contender:
    """An engine, or a way of running one."""

    name: str
    script: str  # in workers/
    environment: str = ""  # see `contenders_setup.py`; "" is the one that asks
    model: str = "hf"  # which form of the model it reads: hf, openvino or gguf
    variant: str = ""
    workloads: tuple[str, ...] = ("decode", "prefill", "W")
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environments(self) -> tuple[str, ...]:
        """What must be installed to load and run it."""
        makers = {"openvino": ("export",), "gguf": ("llama.cpp",)}.get(self.model, ())
        return tuple(e for e in dict.fromkeys((self.environment, *makers)) if e)


CONTENDERS: Mapping[str, Contender] = {
    "assembler": Contender("assembler", "run_assembler.py", variables=_OURS),
    "eager": Contender(
        "assembler, enforce_eager", "run_assembler.py", variant="eager", variables=_OURS
    ),
    "vllm": Contender("vLLM (CPU)", "run_vllm.py", "vllm"),
    "openvino": Contender("OpenVINO GenAI", "run_openvino.py", "openvino", "openvino"),
    "llama.cpp": Contender("llama.cpp", "run_llama_cpp.py", "llama.cpp", "gguf"),
    "transformers": Contender("transformers", "run_transformers.py", variant="generate"),
    "continuous": Contender(
        "transformers, continuous batching",
        "run_transformers.py",
        variant="continuous",
        workloads=("W",),
    ),
    "compiled": Contender(
        "transformers, compiled", "run_transformers.py", variant="compiled", workloads=("decode",)
    ),
}


class WorkerError(Exception):
    """A worker failed; the message names it, what it said and where its log is."""


class Worker:
    """A running contender. Between questions its processes are stopped.

    Threads of an idle engine may spin while they wait for work, and would take the cores from the
    one that is measured.
    """

    def __init__(
        self, contender: Contender, python: Path, settings: Mapping[str, Any], log: Path
    ) -> None:
        """Start the worker and load the model.

        Raises:
            WorkerError: it could not.
        """
        self.name = contender.name
        self._log = log
        variables = {"OMP_NUM_THREADS": str(settings["threads"]), **contender.variables}
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [str(python), str(WORKERS / contender.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **variables},
                # A group, so that its children are stopped with it. It stays in this session: were
                # this process killed, the system would end the group although it is stopped.
                preexec_fn=os.setpgrp,
            )
        self.versions: dict[str, str] = self._ask(settings)["versions"]

    def generate(self, prompts: list[list[int]], counts: list[int]) -> dict[str, Any]:
        """The tokens, and the seconds they took: see `workers/protocol.py`.

        Raises:
            WorkerError: it failed, or generated another number of tokens than it was to.
        """
        self._signal(signal.SIGCONT)
        answer = self._ask({"prompts": prompts, "counts": counts})
        found = [len(tokens) for tokens in answer["tokens"]]
        if found != counts:
            raise WorkerError(f"{self.name}: generated {found} tokens instead of {counts}")
        return answer

    def close(self) -> None:
        """End its processes."""
        self._signal(signal.SIGKILL)
        self._process.communicate()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # if it has ended, there is no answer either
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            self.close()
            raise WorkerError(f"{self.name}: {answer['error']} (log: {self._log})")
        self._signal(signal.SIGSTOP)
        return answer

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
