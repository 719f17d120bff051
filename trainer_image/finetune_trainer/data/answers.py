"""Convert a row of a prompt with one answer, or with a better and a worse one, as texts or as chats."""

from typing import Any

from finetune_trainer.data.chats import put_system_first, read_chat, says_something
from finetune_trainer.data.row_formats import Names, missing_column, read_text_column
from finetune_trainer.data.tool_calls import read_tools
from finetune_trainer.data.values import Message, Row, RowError, first_error, is_blank, is_chat, quote_value

Answer = str | list[Message]


def read_prompt_completion(row: Row, names: Names, *, labelled: bool, as_chat: bool) -> Row | RowError | None:
    """Convert a prompt and its completion; None if the completion is empty.

    Args:
        row: The row.
        names: The row's name of each column.
        labelled: Whether the row must have a label: whether the completion is desirable.
        as_chat: Whether texts become messages, because the rows have a system prompt.
    """
    answers = _read_answers(row, names, ["completion"], as_chat=as_chat)
    label = _read_label(row, names["label"]) if labelled else None
    if isinstance(answers, RowError):
        return answers
    if isinstance(label, RowError):
        return label
    return {**answers, **({"label": label} if labelled else {})} if _is_nonempty(answers["completion"]) else None


def read_preference(row: Row, names: Names, *, as_chat: bool) -> Row | RowError | None:
    """Convert a prompt with a better and a worse answer; None if they are equal or empty.

    If there is no prompt, it is what both answers have in common at their start.

    Args:
        row: The row.
        names: The row's name of each column.
        as_chat: Whether texts become messages, because the rows have a system prompt.
    """
    answers = _read_answers(row, names, ["chosen", "rejected"], as_chat=as_chat)
    if isinstance(answers, RowError):
        return answers
    chosen, rejected = answers["chosen"], answers["rejected"]
    if isinstance(chosen, list) and any(turns and turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        return RowError(
            f"columns {names['chosen']!r} and {names['rejected']!r} must end with a message of the role assistant"
        )
    return answers if chosen != rejected and _is_nonempty(chosen) and _is_nonempty(rejected) else None


def _read_answers(row: Row, names: Names, keys: list[str], *, as_chat: bool) -> Row | RowError:
    """Return the prompt and each answer, all as texts or all as chats, and the tools of a chat."""
    tools = read_tools(row.get(names["tools"]), names["tools"])
    if isinstance(tools, RowError):
        return tools
    as_chat = as_chat or is_chat(row.get(names["prompt"]))
    if not as_chat and not any(is_chat(row.get(names[key])) for key in keys):
        if only_chats := next((names[key] for key in ("tools", "system") if not is_blank(row.get(names[key]))), None):
            return RowError(f"has a column {only_chats!r}, which only chats can have, but its answers are texts")
        return _read_texts(row, names, keys)
    chats = _read_chats(row, names, keys, as_chat=as_chat)
    if isinstance(chats, RowError):
        return chats
    prompt = put_system_first(chats["prompt"], row.get(names["system"]), names["system"])
    return (
        prompt if isinstance(prompt, RowError) else {**chats, "prompt": prompt, **({"tools": tools} if tools else {})}
    )


def _read_texts(row: Row, names: Names, keys: list[str]) -> Row | RowError:
    answers: dict[str, Any] = {key: read_text_column(row, names[key]) for key in keys}
    if problem := first_error(*answers.values()):
        return problem
    if len(keys) == 2 and names["prompt"] not in row:
        prompt, *rest = _split_common_prefix(answers[keys[0]], answers[keys[1]])
        return {"prompt": prompt, **dict(zip(keys, rest, strict=True))}
    text = read_text_column(row, names["prompt"])
    return text if isinstance(text, RowError) else {"prompt": text, **answers}


def _read_chats(row: Row, names: Names, keys: list[str], *, as_chat: bool) -> Row | RowError:
    answers: dict[str, Any] = {key: _read_turns(row, names[key], "assistant" if as_chat else None) for key in keys}
    if problem := first_error(*answers.values()):
        return problem
    prompt = row.get(names["prompt"])
    are_conversations = len(keys) == 2 and answers[keys[0]][0]["role"] != "assistant"
    if len(keys) == 2 and (is_blank(prompt) or (are_conversations and not is_chat(prompt))):
        # Both columns contain whole conversations. A prompt column only repeats their beginning.
        shared = _common_length(*answers.values())
        return {"prompt": answers[keys[0]][:shared], **{key: turns[shared:] for key, turns in answers.items()}}
    prompt = _read_turns(row, names["prompt"], "user")
    if isinstance(prompt, RowError):
        return prompt
    repeated = len(prompt) if all(turns[: len(prompt)] == prompt for turns in answers.values()) else 0
    return {"prompt": prompt, **{key: turns[repeated:] for key, turns in answers.items()}}


def _read_turns(row: Row, name: str, text_role: str | None) -> list[Message] | RowError:
    """Return the messages of a column; a text becomes one message of ``text_role``, if that is set.

    A message that is marked as not learned is an error.
    """
    if name not in row:
        return missing_column(row, name)
    if text_role and isinstance(row[name], str) and not is_chat(row[name]):
        return [{"role": text_role, "content": row[name]}]
    turns = read_chat(row[name], f"column {name!r}")
    if isinstance(turns, RowError):
        return turns
    if any(not turn.get("train", True) for turn in turns):
        return RowError(f"column {name!r} marks turns that are not learned, which only format messages can do")
    return [{key: value for key, value in turn.items() if key != "train"} for turn in turns]


def _read_label(row: Row, name: str) -> bool | RowError:
    if name not in row:
        return missing_column(row, name)
    value = row[name].lower() if isinstance(row[name], str) else row[name]
    if value in (True, "true", "1"):
        return True
    if value in (False, "false", "0"):
        return False
    return RowError(f"column {name!r} must be true or false, found {quote_value(value)}")


def _split_common_prefix(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return what two texts share at their start, up to the last whole word, and the rest of each."""
    shared = _common_length(chosen, rejected)
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _common_length(first: Answer, second: Answer) -> int:
    """Count the characters or messages that two answers share at their start."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _is_nonempty(answer: Answer) -> bool:
    return bool(answer.strip()) if isinstance(answer, str) else says_something(answer)
