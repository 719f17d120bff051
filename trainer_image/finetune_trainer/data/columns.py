"""Find the columns of a row that its format uses, and refuse to ignore columns that usually matter."""

from typing import Any, Literal

from finetune_api.dataset import Columns
from finetune_api.finetunejob import Objective
from finetune_trainer.data.chats import is_chat
from finetune_trainer.data.values import Row, RowError, is_blank, quote_value

Layout = Literal["plain text", "text", "promptCompletion", "messages", "instruction", "preference"]
USUAL = {
    "text": ("text",),
    "messages": ("messages", "conversations", "conversation"),
    "tools": ("tools", "functions"),
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "prompt": ("prompt",),
    "completion": ("completion",),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label",),
}
"""The usual names of each column of ``spec.dataset.columns``; the first one that a row has is used."""
PROMPTS = ("prompt", "question", "query")
"""The usual names of the prompt beside a better and a worse answer."""
LAYOUT_COLUMNS: dict[Layout, tuple[str, ...]] = {
    "plain text": (),
    "text": ("text",),
    "promptCompletion": ("prompt", "completion", "system", "tools"),
    "messages": ("messages", "tools", "system"),
    "instruction": ("instruction", "input", "output", "system", "history"),
    "preference": ("prompt", "chosen", "rejected", "system", "tools"),
}
NEEDED: dict[Layout, tuple[str, ...]] = {
    "messages": ("messages",),
    "promptCompletion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The columns by which a format is detected, in this order."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
WEIGHTS = ("weight", "weights", "sample_weight", "loss_weight", "loss_mask")
TURN_FLAGS = ("mask", "masks", "loss_mask", "train_mask", "train_on_turn", "train_on_turns", "turn_weights", "weights")
"""Columns whose lists usually say which turns of a chat are learned."""
PROMPT_PARTS = (
    *("input", "context", "contexts", "document", "documents", "passage", "passages", "instruction", "instructions"),
    *("system_instruction", "question", "query"),
)
"""Columns that usually belong to the prompt."""
TRUTHS = ("true", "false", "1", "0")
PLACED = (*USUAL["system"], *USUAL["history"], *USUAL["tools"])
"""Columns that are refused in a format that has no place for them."""
PROMPT_LIKE = (
    *(*PROMPTS, "instruction", "input", "problem", "request", "context", "conversations", "conversation"),
    *("text", "user", "post", "trajectory"),
)


def find_columns(row: Row, columns: Columns, layout: Layout, *, labelled: bool = False) -> dict[str, str]:
    """Return the row's name for each column that the format uses; for a missing column, its first usual name."""
    names = {}
    for key in (*LAYOUT_COLUMNS[layout], *(("label",) if labelled else ())):
        usual = PROMPTS if key == "prompt" and layout == "preference" else USUAL[key]
        names[key] = getattr(columns, key) or next((name for name in usual if name in row), usual[0])
    return names


def detect_layout(row: Row, columns: Columns, objective: Objective) -> Layout | None:
    """Return the first format whose columns a row has; None if there is none."""
    has_pair = columns.chosen in row and columns.rejected in row
    if has_pair and objective != "sft":
        return "preference"
    # The columns that the user names decide before those with usual names.
    named = find_named(columns)
    for layout, needed in sorted(NEEDED.items(), key=lambda item: named.keys().isdisjoint(item[1])):
        names = find_columns(row, columns, layout)
        if all(names[key] in row for key in needed) and _is_turns(row, names):
            return layout
    return "preference" if has_pair else None


def _is_turns(row: Row, names: dict[str, str]) -> bool:
    """Return False if the column of a chat has another name and a plain text: then it is no chat."""
    name = names.get("messages", "messages")
    return name == "messages" or is_chat(row[name])


def find_named(columns: Columns) -> dict[str, str]:
    """Return the columns that the user names: all of ``spec.dataset.columns`` that are not its defaults."""
    defaults = Columns()
    names = {key: getattr(columns, key) for key in USUAL}
    return {key: name for key, name in names.items() if name is not None and name != getattr(defaults, key)}


def find_misplaced(columns: Columns, layout: Layout, *, labelled: bool) -> str | None:
    """Return the first key of ``spec.dataset.columns`` that the format has no use for; None if there is none."""
    known = {*LAYOUT_COLUMNS[layout], *(("label",) if labelled else ())}
    return next((key for key in find_named(columns) if key not in known), None)


def find_unused(row: Row, names: dict[str, str]) -> list[str]:
    """Return the columns of a row that its format does not use."""
    used = set(names.values())
    return [name for name in row if name not in used]


def ask_about_unused(
    row: Row, names: dict[str, str], columns: Columns, layout: Layout, read_row: Row
) -> RowError | None:
    """Return the problem of a row with an unused column that usually matters; None if there is none.

    Args:
        row: The row as it was read.
        names: Its columns that the format uses.
        columns: ``spec.dataset.columns``.
        layout: The format.
        read_row: The row as the format reads it.
    """
    asks_prompt = layout == "preference" and names["prompt"] not in row and not _has_question(read_row)
    for name in find_unused(row, names):
        if name in columns.ignored or is_blank(row[name]):
            continue
        question = _question(name, row[name], layout, asks_prompt=asks_prompt)
        if not question and not _is_repeated(row[name], read_row):
            question = _ask_about_role(name, row[name], layout)
        if question:
            return RowError(f"{question}, or name {name!r} in spec.dataset.columns.ignored to leave it out")
    return None


def _has_question(read_row: Row) -> bool:
    """Return whether the prompt of two chats is known, because they begin with the same turn of the user."""
    prompt = read_row["prompt"]
    return isinstance(prompt, list) and any(turn["role"] == "user" for turn in prompt)


def _is_repeated(value: Any, read_row: Row) -> bool:
    """Return whether a text is a part of the question that the format reads; whitespace does not count."""
    return isinstance(value, str) and any(_join_words(value) in _join_words(text) for text in _list_questions(read_row))


def _join_words(text: str) -> str:
    return " ".join(text.split())


def _list_questions(read_row: Row) -> list[str]:
    """Return the texts of a row that the model is asked."""
    turns = [turn for key in ("prompt", "messages") if isinstance(read_row.get(key), list) for turn in read_row[key]]
    texts = [read_row[key] for key in ("prompt", "instruction", "input") if isinstance(read_row.get(key), str)]
    return texts + [turn["content"] for turn in turns if turn["role"] != "assistant"]


def _question(name: str, value: Any, layout: Layout, *, asks_prompt: bool) -> str:
    if name in MEDIA:
        return f"has a column {name!r}, but only text is learned: remove rows that need it"
    if name in TURN_FLAGS and isinstance(value, list):
        return (
            f"has {name} {quote_value(value)}: if it says which turns are learned, write train: false into each "
            "message that is not"
        )
    if name in WEIGHTS and not _is_one(value):
        return (
            f"has {name} {quote_value(value)}, but row weights are not supported: repeat or remove rows to weigh them, "
            "and remove the column"
        )
    if name in PLACED:
        remedy = "move its turns into the messages" if layout == "messages" else "write the rows as messages"
        return f"has a column {name!r}, for which format {layout} has no place: {remedy}"
    if asks_prompt and name in PROMPT_LIKE:
        return (
            f"has no prompt, but a column {name!r}: which column is the prompt? Name it in spec.dataset.columns.prompt"
        )
    return ""


def _ask_about_role(name: str, value: Any, layout: Layout) -> str:
    """Return the question about a column that may be a part of the prompt, or that may tell bad answers from good."""
    if layout in ("promptCompletion", "preference", "instruction") and name in PROMPT_PARTS:
        return (
            f"has a column {name!r}, which format {layout} does not use: if it belongs to the prompt, join the two "
            "(spec.dataset.template can)"
        )
    if layout == "promptCompletion" and name in USUAL["label"] and str(value).lower() in TRUTHS:
        return (
            f"has {name} {quote_value(value)}: if it says whether the completion is good, set spec.objective to kto, "
            "or leave the bad ones out"
        )
    return ""


def _is_one(value: Any) -> bool:
    try:
        return float(value) == 1
    except (TypeError, ValueError):
        return False
