"""A conversation whose last message is to be continued: its text up to there, and nothing after.

As in transformers, the message is written with a mark at its end, and the text is cut at the mark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from assembler.errors import RequestError

_MARK = "CONTINUED_FROM_HERE "  # the space shows whether the template trims messages


def render_unfinished(render: Callable[[dict[str, Any]], str], context: Mapping[str, Any]) -> str:
    """What `render` makes of `context`, up to the end of the last message's text.

    Raises:
        RequestError: it has no text, or the template leaves it out.
    """
    *earlier, last = context["messages"]
    marked = {**last, "content": _with_mark(last.get("content"))}
    text = render({**context, "messages": [*earlier, marked]})
    end = text.rfind(_MARK.rstrip())
    if end < 0:
        raise RequestError(
            "continue_final_message: the chat template leaves out the last message, or its end"
        )
    return text[:end] if text.startswith(_MARK, end) else text[:end].rstrip()


def _with_mark(content: Any) -> Any:
    """`content` with the mark after its text, or after the last of its parts that is text."""
    if isinstance(content, str):
        return content + _MARK
    parts = list(content or ())
    for index in reversed(range(len(parts))):
        if isinstance(parts[index].get("text"), str):
            parts[index] = {**parts[index], "text": parts[index]["text"] + _MARK}
            return parts
    raise RequestError("continue_final_message: the last message has no text to continue")
