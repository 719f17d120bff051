"""Convert chats to one normal form: OpenAI's messages, ShareGPT's turns, and chats with parquet's nulls."""

import re
from typing import Any

from finetune_trainer.data.tool_calls import normalize_calls, read_calls
from finetune_trainer.data.turn_flags import FLAGS, read_flag
from finetune_trainer.data.values import (
    Message,
    RowError,
    describe_type,
    drop_nulls,
    is_blank,
    is_null,
    parse_stored,
    quote_value,
)

ROLES = {
    "user": ("human", "prompter"),
    "assistant": ("gpt", "chatgpt", "bing", "bard", "model", "bot", "ai"),
    "system": (),
    "developer": (),
    "tool": ("observation", "function", "function_response", "tool_response"),
    "function_call": ("tool_call",),
}
"""Other names of each role. A turn of ShareGPT's role function_call becomes a tool call of the assistant."""
BY_ALIAS = {alias: role for role, aliases in ROLES.items() for alias in (role, *aliases)}
STORED_CHAT = re.compile(r"\s*\[\s*\{\s*['\"](role|from|content|value)['\"]")
"""How the text of a stored chat begins, in JSON or in Python's notation."""
STORED_ROLE = re.compile(r"['\"](?:role|from)['\"]\s*:\s*['\"](\w+)['\"]")
"""The role of a message in such a text."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message with its reasoning."""
TEXT_PARTS = ("text", "input_text", "output_text")
REPLACED_KEYS = ("from", "value", "role", "content", "tool_calls", "function_call", *FLAGS)
"""Keys of a message that the normal form replaces; all others are kept."""


def read_chat(value: Any, column: str) -> list[Message] | RowError:
    """Return the messages of a column in the normal form.

    Each has ``role`` and ``content``, which is always a text. The arguments of ``tool_calls`` are objects. ``train``
    is present if the data say whether the turn is learned. Keys with null are absent.

    Args:
        value: The column's value: a list of messages, one message, or JSON.
        column: The column's name for messages to the user, for example ``column 'messages'``.
    """
    messages = parse_stored(value, column)
    if isinstance(messages, RowError):
        return messages
    if isinstance(messages, dict):
        messages = _transpose(messages)
    if not isinstance(messages, list) or not messages:
        return RowError(f"{column} must be a list of messages, found {describe_type(messages)}")
    turns = []
    for number, message in enumerate(messages, start=1):
        turn = _read_message(drop_nulls(message), f"message {number} in {column}")
        if isinstance(turn, RowError):
            return turn
        turns.append(turn)
    return turns


def is_chat(value: Any) -> bool:
    """Return whether the value of a column is a chat, perhaps stored as text.

    A text that is a list of other objects, or of unknown roles only, is an answer in JSON.
    """
    if not isinstance(value, str):
        return isinstance(value, list | dict)
    if not STORED_CHAT.match(value):
        return False
    messages = parse_stored(value, "")
    if isinstance(messages, RowError):
        return any(role.lower() in BY_ALIAS for role in STORED_ROLE.findall(value))
    return all(_is_message(message) for message in messages) and any(
        str(message.get("role", message.get("from"))).strip().lower() in BY_ALIAS for message in messages
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and not (
        {"role", "from"}.isdisjoint(value) or {"content", "value", "tool_calls"}.isdisjoint(value)
    )


def says_something(turns: list[Message]) -> bool:
    """Return whether the assistant says or calls something that is learned."""
    return any(
        turn["role"] == "assistant" and turn.get("train", True) and (turn["content"].strip() or "tool_calls" in turn)
        for turn in turns
    )


def put_system_first(turns: list[Message], system: Any, name: str) -> list[Message] | RowError:
    """Return the chat with the system prompt of the column ``name`` as its first message."""
    if is_blank(system):
        return turns
    if not isinstance(system, str):
        return RowError(f"column {name!r} must be text, found {describe_type(system)}")
    if turns[:1] and turns[0]["role"] in ("system", "developer"):
        if turns[0]["content"].strip() == system.strip():
            return turns
        return RowError(
            f"the chat begins with a {turns[0]['role']} message, and column {name!r} has another system prompt: remove "
            "one of them"
        )
    return [{"role": "system", "content": system}, *turns]


def _transpose(columns_or_message: dict[str, Any]) -> list[Any]:
    """Return the messages of an object of lists, the Sequence of the datasets library, or the one message."""
    columns = {key: values for key, values in columns_or_message.items() if not is_null(values)}
    if (
        columns
        and all(isinstance(values, list) for values in columns.values())
        and not {"role", "from"}.isdisjoint(columns)
    ):
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=False)]
    return [columns_or_message]


def _read_message(message: Any, location: str) -> Message | RowError:
    fields = message if isinstance(message, dict) else {}
    name, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
    role = BY_ALIAS.get(name.strip().lower(), name) if isinstance(name, str) else None
    if role is not None and "role" not in fields and role not in ROLES:
        return RowError(f"{location} is from {name!r}, an unknown role; known are: {', '.join(BY_ALIAS)}")
    if role == "function_call":
        calls = _read_call_turn(content, location)
        role, content = "assistant", None
    else:
        calls = read_calls(fields, location)
    text = _join_parts(content, location)
    if problem := next((error for error in (calls, text) if isinstance(error, RowError)), None):
        return problem
    if role is None or (text is None and not calls):
        return RowError(f"{location} must have the texts role and content, found {quote_value(message)}")
    flag = read_flag({**fields, "role": role}, location)
    if isinstance(flag, RowError):
        return flag
    return {
        "role": role,
        "content": text or "",
        **({"tool_calls": calls} if calls else {}),
        **({"train": flag} if flag is not None and role == "assistant" else {}),
        **{key: value for key, value in fields.items() if key not in REPLACED_KEYS},
    }


def _read_call_turn(content: Any, location: str) -> list[dict[str, Any]] | RowError:
    """Return the calls of a turn whose text is one tool call, or a list of them, as JSON."""
    calls = parse_stored(content, location)
    return (
        calls
        if isinstance(calls, RowError)
        else normalize_calls(calls if isinstance(calls, list) else [calls], location)
    )


def _join_parts(content: Any, location: str) -> str | RowError | None:
    """Return a message's text. Parts are joined by newlines, as vLLM does it for the same request."""
    if content is None or isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in TEXT_PARTS:
            return RowError(
                f"{location} has a part of the type {kind!r}, which is not supported: only text can be learned"
            )
        if not isinstance(text, str):
            return RowError(f"{location} must have the texts role and content, found {quote_value(content)} as content")
        texts.append(text)
    return "\n".join(texts)
