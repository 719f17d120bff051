"""Convert a row of a prompt with one answer, or with a better and a worse one, as texts or as chats."""

from typing import Any

from finetune_trainer.data.chats import REASONING_KEYS, is_chat, put_system_first, read_chat, says_something
from finetune_trainer.data.prefix import common_prefix_length
from finetune_trainer.data.row_formats import Names, missing_column, read_text_column
from finetune_trainer.data.tool_calls import read_tools
from finetune_trainer.data.values import Message, Row, RowError, first_error, is_blank, quote_value

Answer = str | list[Message]
SYSTEM_ROLES = ("system", "developer")
REPEATED_WORDS = 3
"""Number of words from which on a prompt that begins both answers is taken for a repetition, and not for a title."""


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
    if labelled and (problem := _check_turns(answers["completion"], names["completion"])):
        return problem
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
    if problem := first_error(*(_check_turns(answers[key], names[key]) for key in ("chosen", "rejected"))):
        return problem
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
    if len(keys) == 2 and is_blank(row.get(names["prompt"])):
        prompt, *rest = _split_common_prefix(answers[keys[0]], answers[keys[1]])
        return {"prompt": prompt, **dict(zip(keys, rest, strict=True))}
    text = read_text_column(row, names["prompt"])
    if isinstance(text, RowError):
        return text
    return {"prompt": text, **_remove_prompt(text, answers)}


def _remove_prompt(prompt: str, answers: dict[str, str]) -> dict[str, str]:
    """Remove the prompt from two texts that both begin with it, unless it may be a title."""
    repeated = prompt.rstrip()
    is_prompt = len(repeated.split()) >= REPEATED_WORDS or not repeated[-1:].isalnum()
    if len(answers) == 2 and repeated and is_prompt and all(text.startswith(repeated) for text in answers.values()):
        return {key: text.removeprefix(repeated) for key, text in answers.items()}
    return answers


def _read_chats(row: Row, names: Names, keys: list[str], *, as_chat: bool) -> Row | RowError:
    prompt = row.get(names["prompt"])
    columns = {names[key]: row.get(names[key]) for key in keys}
    texts = {name: value for name, value in columns.items() if isinstance(value, str) and not is_chat(value)}
    if as_chat and isinstance(prompt, str):
        row = row | _remove_prompt(prompt, texts)
    answers: dict[str, Any] = {key: _read_turns(row, names[key], "assistant" if as_chat else None) for key in keys}
    if problem := first_error(*answers.values()):
        return problem
    if is_blank(prompt):
        return _split_conversations(answers, names, are_texts=bool(texts))
    if not is_chat(prompt) and answers[keys[0]][0]["role"] != "assistant":
        split = _split_conversations(answers, names, question=str(prompt))
        if isinstance(split, RowError) or _contains(split["prompt"], str(prompt)):
            return split
        return RowError(
            f"column {names[keys[0]]!r} is a whole conversation, and column {names['prompt']!r} is not a part of it: "
            f"{quote_value(prompt)}. Remove this column, or write only the answer into the other"
        )
    turns = _read_turns(row, names["prompt"], "user")
    return turns if isinstance(turns, RowError) else _remove_repeated(turns, answers, names)


def _split_conversations(
    answers: dict[str, list[Message]], names: Names, *, question: str = "", are_texts: bool = False
) -> Row | RowError:
    """Split whole conversations into the prompt and the rest of each.

    The prompt of two conversations is what they share. That of one ends with ``question``, if there is one.

    Args:
        answers: The conversations.
        names: The row's name of each column.
        question: The text of the prompt's column.
        are_texts: Whether they were texts, which do not say who speaks.
    """
    if len(answers) == 1:
        ((key, turns),) = answers.items()
        asked = [n for n, turn in enumerate(turns, start=1) if turn["role"] == "user" and _contains([turn], question)]
        end = asked[-1] if question and asked else 0
        return {"prompt": turns[:end], key: turns[end:]}
    (first, turns), (second, others) = answers.items()
    pairs = zip(turns, others, strict=False)
    shared = next((n for n, (a, b) in enumerate(pairs) if _core(a) != _core(b)), min(len(turns), len(others)))
    if not shared and are_texts:
        return RowError(
            "has no prompt, though other rows have system prompts, so that the answers become turns of a chat: name "
            "the prompt in spec.dataset.columns.prompt, or write the answers as lists of messages"
        )
    if not shared and turns[0]["role"] != "assistant":
        return RowError(
            f"the conversations in columns {names[first]!r} and {names[second]!r} do not begin alike, so they answer "
            "different questions: a better and a worse answer must have the same turns before them"
        )
    return {"prompt": turns[:shared], first: turns[shared:], second: others[shared:]}


def _contains(turns: list[Message], question: str) -> bool:
    """Return whether a question is in turns of the user, or these are in the question; whitespace does not count."""
    contents = ["".join(turn["content"].split()) for turn in turns if turn["role"] == "user"]
    asked = "".join(question.split())
    return any(asked in content for content in contents) or (
        bool(contents) and all(content in asked for content in contents)
    )


def _remove_repeated(prompt: list[Message], answers: dict[str, list[Message]], names: Names) -> Row | RowError:
    """Remove the end of the prompt from answers that begin with it; a system prompt may be in either of them."""
    asked = _without_system(prompt)
    bodies = {key: _without_system(turns) for key, turns in answers.items()}
    cores = [_core(turn) for turn in asked]
    sizes = (
        size for size in range(len(asked), 0, -1) if all(_begins_with(body, cores[-size:]) for body in bodies.values())
    )
    repeated = next(sizes, 0)
    systems = [turns[: len(turns) - len(bodies[key])] for key, turns in answers.items()]
    own = prompt[: len(prompt) - len(asked)]
    if not repeated and (asked or not own or systems[0] != own):
        return {"prompt": prompt, **answers}
    if any(system != systems[0] for system in systems) or (own and systems[0] and systems[0] != own):
        return RowError(
            f"column {names['prompt']!r} and the conversations that repeat it have different system prompts: remove "
            "all but one"
        )
    return {"prompt": [*(own or systems[0]), *asked], **{key: body[repeated:] for key, body in bodies.items()}}


def _begins_with(turns: list[Message], cores: list[tuple[Any, ...]]) -> bool:
    return [_core(turn) for turn in turns[: len(cores)]] == cores


def _core(turn: Message) -> tuple[Any, ...]:
    """Return what makes two turns equal: role, content without outer whitespace, tool calls and reasoning."""
    return turn["role"], turn["content"].strip(), *(turn.get(key) for key in ("tool_calls", *REASONING_KEYS))


def _without_system(turns: list[Message]) -> list[Message]:
    """Return the turns after the system prompts with which a chat begins."""
    return turns[next((n for n, turn in enumerate(turns) if turn["role"] not in SYSTEM_ROLES), len(turns)) :]


def _check_turns(answer: Answer, name: str) -> RowError | None:
    """Check that an answer that is compared with another one has turns of the assistant only."""
    other = (
        next((turn["role"] for turn in answer if turn["role"] != "assistant"), None)
        if isinstance(answer, list)
        else None
    )
    if other is None:
        return None
    return RowError(
        f"the answer in column {name!r} has a message of the role {other}, which would be learned: an answer that is "
        "compared may have messages of the assistant only; move what comes before the last of them into the prompt"
    )


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
    shared = common_prefix_length(chosen, rejected)
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _is_nonempty(answer: Answer) -> bool:
    return bool(answer.strip()) if isinstance(answer, str) else says_something(answer)
