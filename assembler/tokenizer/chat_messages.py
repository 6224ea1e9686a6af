"""Checking a conversation before a chat template sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from assembler.errors import RequestError

# The names under which messages carry the model's reasoning; templates read the first (some the
# second).
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A copy of `messages` made of plain data, without null fields.

    Each message needs a `role`, and `content`: a string or a list of parts such as
    `{"type": "text", "text": ...}`. A message that calls tools may go without content.

    Raises:
        RequestError: naming every message that is malformed.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(
            "messages must be a list of {role, content} objects, "
            f"not a {type(messages).__name__}: give a plain text as a prompt"
        )
    if not messages:
        raise RequestError("messages is empty: a conversation has at least one message")
    findings = [f for i, message in enumerate(messages) for f in _findings(message, i)]
    if findings:
        raise RequestError("\n".join(findings))
    plain = [plain_data(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return [_with_reasoning({k: v for k, v in m.items() if v is not None}) for m in plain]


def _findings(message: object, index: int) -> list[str]:
    """What is wrong with one message."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        return [f"{where} is a {type(message).__name__}, not a {{role, content}} object"]
    findings = []
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        findings.append(f"{where} has no role (such as 'system', 'user' or 'assistant')")
    if content is None:
        if not message.get("tool_calls"):
            findings.append(f"{where} has no content")
    elif isinstance(content, list):
        findings += [
            f"{where}.content[{i}] is a {type(part).__name__}, not an object with a type"
            for i, part in enumerate(content)
            if not isinstance(part, Mapping)
        ]
    elif not isinstance(content, str):
        findings.append(f"{where}.content is a {type(content).__name__}, not text or parts")
    return findings


def plain_data(value: Any, where: str) -> Any:
    """`value` rebuilt from JSON types: objects with methods do not get into the sandbox.

    Raises:
        RequestError: something in `value` is not plain data; `where` names it.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):  # subclasses, such as enums, lose what they add
        if isinstance(value, kind):
            return kind.__new__(kind, value)
    if isinstance(value, Mapping):
        return {
            plain_data(key, where): plain_data(item, f"{where}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(plain_data(item, f"{where}[{i}]") for i, item in enumerate(value))
    raise RequestError(f"{where} is a {type(value).__name__}; a chat template takes plain data")


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """`message` with its reasoning under the names that templates read."""
    reasoning = next((message[key] for key in _REASONING_KEYS if key in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
