"""One rank of a launched group: `python parity_rank.py OUT FOLDER...`; rank 0 saves all logits."""

import os
import sys
from pathlib import Path

import torch
from tiny_checkpoints import token_ids

from assembler.distributed.launch import find_launch
from assembler.distributed.start import join_ranks
from assembler.loading import assemble, load_weights, logits


@torch.no_grad()
def main(out: str, *folders: str) -> None:
    launch = find_launch(int(os.environ["WORLD_SIZE"]))
    ranks = join_ranks(launch, torch.device("cpu"))
    found = {}
    for folder in folders:
        assembly = assemble(folder, tp=ranks.tp)
        assert assembly.plan.findings == ()
        found[Path(folder).name] = logits(load_weights(assembly), token_ids())
    if launch.rank == 0:
        torch.save(found, out)
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
