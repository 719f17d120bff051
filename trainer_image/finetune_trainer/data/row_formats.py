"""Convert a row of each dataset format to the columns that training uses, or return its problem.

Each function receives the names that the row has for the columns of its format.
"""

from typing import Any

from finetune_trainer.data.chats import put_system_first, read_chat, says_something
from finetune_trainer.data.tool_calls import read_tools
from finetune_trainer.data.values import (
    Message,
    Row,
    RowError,
    column_names,
    describe_type,
    first_error,
    is_blank,
    is_null,
    parse_stored,
    quote_value,
)

Names = dict[str, str]


def read_text_column(row: Row, name: str) -> str | RowError:
    """Return the text of a column."""
    if name not in row:
        return missing_column(row, name)
    if not isinstance(row[name], str):
        return RowError(f"column {name!r} must be text, found {describe_type(row[name])}")
    return str(row[name])


def missing_column(row: Row, name: str) -> RowError:
    """Return the problem of a row that lacks a column."""
    return RowError(f"has no column {name!r}; found columns: {column_names(row)}")


def _read_optional_text(row: Row, name: str) -> str | RowError:
    return "" if is_null(row.get(name)) else read_text_column(row, name)


def _read_turns(row: Row, name: str) -> list[Message] | RowError:
    return read_chat(row[name], f"column {name!r}") if name in row else missing_column(row, name)


def read_text(row: Row, names: Names) -> Row | RowError | None:
    """Convert a row with a text; None if the text is empty."""
    text = read_text_column(row, names["text"])
    if isinstance(text, RowError):
        return text
    return {"text": text} if text.strip() else None


def read_messages(row: Row, names: Names) -> Row | RowError | None:
    """Convert a row of chat messages; None if the assistant says nothing that is learned."""
    chat = _read_turns(row, names["messages"])
    turns = chat if isinstance(chat, RowError) else put_system_first(chat, row.get(names["system"]), names["system"])
    tools = read_tools(row.get(names["tools"]), names["tools"])
    if isinstance(turns, RowError):
        return turns
    if isinstance(tools, RowError):
        return tools
    if all(turn["role"] != "assistant" for turn in turns):
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
        return RowError(
            f"column {names['messages']!r} has no message of the role assistant to learn from; found roles: {roles}"
        )
    return {"messages": turns, **({"tools": tools} if tools else {})} if says_something(turns) else None


def read_instruction(row: Row, names: Names) -> Row | RowError | None:
    """Convert a row with an instruction, its optional parts, and an answer; None if the answer is empty."""
    instruction, answer = read_text_column(row, names["instruction"]), read_text_column(row, names["output"])
    context, system = _read_optional_text(row, names["input"]), _read_optional_text(row, names["system"])
    history = _read_history(row, names["history"])
    if problem := first_error(instruction, answer, context, system, history):
        return problem
    if not answer.strip():
        return None
    optional = {"system": system, "history": history}
    fields = {"instruction": instruction, "input": context, "output": answer}
    return fields | {key: value for key, value in optional.items() if not is_blank(value)}


def _read_history(row: Row, name: str) -> list[Any] | RowError:
    """Return the earlier questions and answers of an instruction."""
    history = parse_stored(row.get(name), f"column {name!r}")
    if isinstance(history, RowError):
        return history
    if is_blank(history):
        return []
    if not isinstance(history, list) or not all(_is_pair(turn) for turn in history):
        return RowError(
            f"column {name!r} must be a list of pairs of a question and its answer, found {quote_value(history)}"
        )
    return history


def _is_pair(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
