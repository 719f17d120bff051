"""Convert a row of each dataset format to the columns that training uses, or return its problem."""

import json
from collections.abc import Callable
from typing import Any

from finetune_api.dataset import Columns
from finetune_trainer.data.files import quote

Row = dict[str, Any]


Message = dict[str, Any]


class RowError(str):
    """Describe the problem with a row; a subclass of str tells it from the texts of rows."""

    __slots__ = ()


def read_text_column(row: Row, name: str) -> str:
    """Return the text of a column."""
    if name not in row:
        return RowError(f"has no column {name!r}; found columns: {column_names(row)}")
    if not isinstance(row[name], str):
        return RowError(f"column {name!r} must be text, found {_describe_type(row[name])}")
    return str(row[name])


def _read_turns(row: Row, name: str) -> list[Message] | RowError:
    """Return the chat messages of a column without their null fields, which parquet adds."""
    if name not in row:
        return RowError(f"has no column {name!r}; found columns: {column_names(row)}")
    found = _parse_json_list(row[name])
    if not isinstance(found, list) or not found:
        return RowError(f"column {name!r} must be a list of messages, found {_describe_type(found)}")
    turns = []
    for index, message in enumerate(found, start=1):
        kept = {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else {}
        calls = isinstance(kept.get("tool_calls"), list) and kept["tool_calls"]
        if not isinstance(kept.get("role"), str) or not (
            isinstance(kept.get("content"), str) or (calls and "content" not in kept)
        ):
            shown = quote(json.dumps(message, default=str).encode())
            return RowError(f"message {index} in column {name!r} must have the texts role and content, found {shown}")
        turns.append({"content": "", **kept})
    return turns


def read_messages(row: Row, columns: Columns) -> Row | RowError | None:
    """Convert a row of chat messages; None if the assistant says nothing."""
    turns = _read_turns(row, columns.messages)
    if isinstance(turns, RowError):
        return turns
    answers = [message for message in turns if message["role"] == "assistant"]
    if not answers:
        roles = ", ".join(dict.fromkeys(message["role"] for message in turns))
        return RowError(
            f"column {columns.messages!r} has no message of the role assistant to learn from; found roles: {roles}"
        )
    if not any(message["content"].strip() or message.get("tool_calls") for message in answers):
        return None
    tools = _read_tools(row, columns.tools)
    return tools if isinstance(tools, RowError) else {"messages": turns, **({"tools": tools} if tools else {})}


def _read_tools(row: Row, name: str) -> list[Any] | RowError | None:
    tools = _parse_json_list(row.get(name))
    if tools is None or tools == "":
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return RowError(f"column {name!r} must be a list of tools, found {_describe_type(tools)}")
    return tools


def read_instruction(row: Row, columns: Columns) -> Row | RowError | None:
    """Convert a row with an instruction, an optional input, and an answer; None if the answer is empty."""
    instruction, answer = read_text_column(row, columns.instruction), read_text_column(row, answer_column(row, columns))
    if wrong := _first_error(instruction, answer):
        return wrong
    about = columns.input or ("input" if "input" in row else "context")
    given = row.get(about)
    if given is not None and not isinstance(given, str):
        return RowError(f"column {about!r} must be text, found {_describe_type(given)}")
    return {"instruction": instruction, "input": given or "", "output": answer} if answer.strip() else None


def answer_column(row: Row, columns: Columns) -> str:
    """Return the name of the answer's column: ``output`` (Alpaca), or ``response`` (Dolly)."""
    return columns.output or ("response" if "response" in row and "output" not in row else "output")


def read_prompt_completion(row: Row, columns: Columns, *, labelled: bool) -> Row | RowError | None:
    """Convert a prompt and its completion, as two texts or two lists of messages; None if it is empty."""
    chat = isinstance(row.get(columns.completion), list)
    prompt: Any = _read_turns(row, columns.prompt) if chat else read_text_column(row, columns.prompt)
    completion: Any = _read_turns(row, columns.completion) if chat else read_text_column(row, columns.completion)
    if wrong := _first_error(prompt, completion):
        return wrong
    label = _read_label(row, columns.label) if labelled else None
    if isinstance(label, RowError):
        return label
    if not _is_nonempty(completion):
        return None
    return {"prompt": prompt, "completion": completion, **({"label": label} if labelled else {})}


def _read_label(row: Row, name: str) -> bool | RowError:
    if name not in row:
        return RowError(f"has no column {name!r}; found columns: {column_names(row)}")
    value = row[name].lower() if isinstance(row[name], str) else row[name]
    if value in (True, "true", "1"):
        return True
    if value in (False, "false", "0"):
        return False
    return RowError(f"column {name!r} must be true or false, found {quote(json.dumps(value, default=str).encode())}")


def read_preference(row: Row, columns: Columns) -> Row | RowError | None:
    """Convert a prompt with a better and a worse answer; None if they are equal or empty.

    If there is no prompt, it is what both answers have in common at their start.
    """
    chat = isinstance(_parse_json_list(row.get(columns.chosen)), list)
    read: Callable[[Row, str], Any] = _read_turns if chat else read_text_column
    chosen, rejected = read(row, columns.chosen), read(row, columns.rejected)
    if wrong := _first_error(chosen, rejected):
        return wrong
    prompt: Any = _parse_json_list(row.get(columns.prompt))
    if (
        chat
        and (not isinstance(prompt, list) or not prompt)
        and (not isinstance(prompt, str) or chosen[0]["role"] != "assistant")
    ):
        # whole conversations in both columns; a prompt beside them only repeats their beginning
        same = next(
            (n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
            min(len(chosen), len(rejected)),
        )
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    elif chat:
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _read_turns(row, columns.prompt)
        if isinstance(prompt, RowError):
            return prompt
    elif columns.prompt in row:
        prompt = read_text_column(row, columns.prompt)
        if isinstance(prompt, RowError):
            return prompt
    else:
        prompt, chosen, rejected = _split_common_prefix(chosen, rejected)
    if chat and any(turns and turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        return RowError(
            f"columns {columns.chosen!r} and {columns.rejected!r} must end with a message of the role assistant"
        )
    if chosen == rejected or not _is_nonempty(chosen) or not _is_nonempty(rejected):
        return None
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _split_common_prefix(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return what two texts share at their start, up to the last whole word, and the rest of each."""
    same = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    while same and not chosen[same - 1].isspace():
        same -= 1
    return chosen[:same], chosen[same:], rejected[same:]


def _is_nonempty(answer: str | list[Message]) -> bool:
    if isinstance(answer, str):
        return bool(answer.strip())
    return any(message["content"].strip() or message.get("tool_calls") for message in answer)


def _parse_json_list(value: Any) -> Any:
    """Parse a list that is stored as JSON, as in CSV files; return any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _first_error(*values: Any) -> RowError | None:
    return next((value for value in values if isinstance(value, RowError)), None)


def column_names(row: Row) -> str:
    """Return the names of the first columns, for a message."""
    return ", ".join(list(row)[:20]) or "none"


def _describe_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | str) and not value:
        return f"an empty {'list' if isinstance(value, list) else 'text'}"
    return {
        "str": "a text",
        "int": "a number",
        "float": "a number",
        "bool": "true or false",
        "list": "a list",
        "dict": "an object",
    }.get(type(value).__name__, type(value).__name__)
