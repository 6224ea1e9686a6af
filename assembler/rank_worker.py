"""The program of a rank that `LLM(tensor_parallel_size=N)` starts; not for people to call."""

from __future__ import annotations

import os
import signal
import sys

from assembler.distributed.processes import read_job


def main() -> int:
    """Serve rank 0 until it ends; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's, which ends this one
    job = read_job()
    from assembler.distributed.start import join_parent
    from assembler.llm_options import LLMOptions
    from assembler.rank_model import rank_device, serve_rank

    options = LLMOptions.model_validate_json(job["options"])
    rank = job["rank"]
    ranks = join_parent(rank, job["size"], job["port"], rank_device(options, rank))
    report = serve_rank(ranks, job["model"], options, rank)
    return 0 if report is None else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the process group may outlive it, and abort a process that ends the long way.
    os._exit(status)
