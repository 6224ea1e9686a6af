"""From conversations to prompts: the chat template and its options, as `LLM.chat` takes them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from assembler.engine.options import Options
from assembler.errors import RequestError
from assembler.tokenizer import Tokenizer


class ChatOptions(Options):
    """How conversations become prompts (vLLM's names)."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "chat_template_content_format": "texts and lists of parts go to the template as they are; "
        "leave it out",
        "documents": "here it goes into chat_template_kwargs",
        "enable_thinking": "here it goes into chat_template_kwargs, {'enable_thinking': False}",
        "lora_request": "there is nothing like it here, leave it out",
        "mm_processor_kwargs": "there is nothing like it here, leave it out",
    }

    chat_template: str | None = Field(
        None, description="name of one of the model's templates, or the source of another one"
    )
    add_generation_prompt: bool | None = Field(
        None,
        description="end with the opening of the answer; null: unless continue_final_message",
    )
    continue_final_message: bool = Field(
        False, description="the answer goes on with the text of the last message"
    )
    tools: tuple[dict[str, Any], ...] | None = Field(
        None, description="JSON schemas of the functions the model may call"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="further variables of the template, e.g. {'enable_thinking': False}"
    )

    @field_validator("tools", mode="before")
    @classmethod
    def _tools_as_tuple(cls, tools: Any) -> Any:
        return tuple(tools) if isinstance(tools, list) else tools

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _no_variables(cls, variables: Any) -> Any:
        return {} if variables is None else variables

    @field_validator("chat_template_kwargs")
    @classmethod
    def _each_in_one_place(cls, variables: dict[str, Any]) -> dict[str, Any]:
        if twice := sorted({*cls.model_fields, "messages"} & variables.keys()):
            raise ValueError(f"{', '.join(twice)} cannot be among them: arguments of chat itself")
        return variables

    def render(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of one conversation; errors are those of `Tokenizer.apply_chat_template`."""
        opens = self.add_generation_prompt
        return tokenizer.apply_chat_template(
            messages,
            not self.continue_final_message if opens is None else opens,
            continue_final_message=self.continue_final_message,
            chat_template=self.chat_template,
            tools=self.tools,
            **self.chat_template_kwargs,
        )


def chat_prompts(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Mapping[str, Any]]], **options: Any
) -> list[dict[str, Any]]:
    """Each conversation as a prompt: its text, and the token ids of that.

    Raises:
        OptionError: `options`, those of `ChatOptions`, are wrong.
        TokenizerError: the model has no chat template, or a broken one.
        RequestError: conversations are malformed, each of which is named.
    """
    asked = ChatOptions(**options)
    prompts: list[dict[str, Any]] = []
    refused: list[str] = []
    for number, messages in enumerate(conversations):
        try:
            text = asked.render(tokenizer, messages)
            # The template writes the special tokens itself.
            ids = tokenizer.encode(text, add_special_tokens=False)
            prompts.append({"prompt": text, "prompt_token_ids": ids})
        except RequestError as error:
            where = f"conversation {number}: " if len(conversations) > 1 else ""
            refused.append(f"{where}{error}")
    if refused:
        raise RequestError("\n".join(refused))
    return prompts
