"""`ChatTemplate`: a conversation written as the text the model was trained on.

The template is a Jinja program that comes with the model. It runs in a sandbox and renders as in
transformers' `apply_chat_template`.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from assembler.errors import RequestError, TokenizerError, did_you_mean
from assembler.tokenizer.chat_messages import checked_messages, plain_data
from assembler.tokenizer.unfinished_message import render_unfinished

if TYPE_CHECKING:  # jinja2 takes 70 ms to import: only rendering needs it
    import jinja2


class ChatTemplate:
    """The chat template of a model, or several under names."""

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the templates; they are compiled when first used.

        Args:
            templates: Jinja source, or one for each name. "default" is used when none is asked for,
                "tool_use" when there are tools.
            special_tokens: role -> text, e.g. "bos_token" -> "<s>"; variables of the template.
        """
        self._sources = {"default": templates} if isinstance(templates, str) else dict(templates)
        self._special_tokens = dict(special_tokens or {})
        self._compiled: dict[str, tuple[jinja2.Template, frozenset[str]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the templates."""
        return tuple(sorted(self._sources))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: list of {role, content} objects, oldest first.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: end within the last message, whose text is to be continued.
            chat_template: name of the template, where the model has several, or the source of one.
            tools: JSON schemas of the functions the model may call.
            documents: {title, text} objects to answer from.
            variables: further variables the template reads, e.g. `enable_thinking=False`.

        Raises:
            TokenizerError: the template is broken, or there is none of that name.
            RequestError: the messages are malformed, the template refuses or fails on them, or
                does not read something it is given; or the last message cannot be continued.
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message goes on with the last message, add_generation_prompt "
                "begins another one: set one of them to False"
            )
        given = {"tools": tools, "documents": documents}
        given = {name: value for name, value in given.items() if value is not None} | variables
        template, reads = self._compile(*self._choose(chat_template, tools is not None))
        for variable in given:
            if variable not in reads:
                known = sorted(reads - {*self._special_tokens, "messages", "add_generation_prompt"})
                raise RequestError(
                    f"the chat template does not read {variable!r}."
                    f"{did_you_mean(variable, known)} It reads {', '.join(known) or 'no options'}"
                )
        context = {
            **self._special_tokens,
            **dict.fromkeys(("tools", "documents")),
            **{variable: plain_data(value, variable) for variable, value in given.items()},
            "messages": checked_messages(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        if continue_final_message:
            return render_unfinished(partial(_render, template), context)
        return _render(template, context)

    def _choose(self, name: str | None, has_tools: bool) -> tuple[str, str]:
        """What the template to use is called, and its source."""
        if name is not None and "{" in name and name not in self._sources:
            return "that was given", name
        if name is None:
            name = "tool_use" if has_tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise TokenizerError(
                f"there is no chat template {name!r}.{did_you_mean(name, self._sources)} "
                f"The model has {', '.join(map(repr, self.names))}: name one with chat_template="
            )
        return repr(name), self._sources[name]

    def _compile(self, name: str, source: str) -> tuple[jinja2.Template, frozenset[str]]:
        """The compiled template and the names of the variables it reads."""
        if source not in self._compiled:
            import jinja2
            import jinja2.meta

            from assembler.tokenizer.chat_environment import chat_environment

            environment = chat_environment()
            try:
                template = environment.from_string(source)
                tree = environment.parse(source)
                names = jinja2.meta.find_undeclared_variables(tree)
            except jinja2.TemplateSyntaxError as error:
                raise TokenizerError(
                    f"chat template {name}, line {error.lineno}: {error.message}"
                ) from error
            self._compiled[source] = template, frozenset(names - set(environment.globals))
        return self._compiled[source]


def _render(template: jinja2.Template, context: Mapping[str, Any]) -> str:
    """Run the template; its errors become ours."""
    from jinja2.sandbox import SecurityError

    from assembler.tokenizer.chat_environment import RaisedByTemplate

    try:
        return template.render(context)
    except RaisedByTemplate as error:
        raise RequestError(f"the chat template refuses the messages: {error.message}") from error
    except SecurityError as error:
        raise TokenizerError(f"the chat template is not safe to run: {error.message}") from error
    except Exception as error:  # foreign code: it may fail in any way
        lines = [
            f.lineno
            for f in traceback.extract_tb(error.__traceback__)
            if f.filename == "<template>"
        ]
        where = f", line {lines[-1]}," if lines else ""
        raise RequestError(
            f"the chat template{where} fails on the messages: {type(error).__name__}: {error}"
        ) from error
