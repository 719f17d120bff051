"""The rows of a dataset: what format they have, and what is wrong with them. Needs no tokenizer, so that the preflight can ask too."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.dataset import Columns, DatasetSource
from finetune_api.finetunejob import Objective
from finetune_api.reasons import Reason
from finetune_trainer.data.files import Item, items, kind_of, pieces, quote
from finetune_trainer.data.sources import DataFile
from finetune_trainer.data.templates import renderer
from finetune_trainer.runtime.failures import Failure

Layout = Literal["plain text", "text", "promptCompletion", "messages", "instruction", "preference"]
Row = dict[str, Any]
Message = dict[str, Any]
SHOWN = 5
"""So many bad rows are named in a message."""
PAIRED = ("dpo", "orpo", "reward")
"""Objectives that learn from a better and a worse answer."""


@dataclass
class Findings:
    """What reading the rows brought: how many there were, and what is wrong with which."""

    rows: int = 0
    bad: int = 0
    empty: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, place: str, text: str) -> None:
        """Note one bad row."""
        self.bad += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{place}: {text}")


@dataclass(frozen=True)
class Reader:
    """How the rows of a dataset are read: what they are, and the names that their columns have."""

    layout: Layout
    columns: Columns
    objective: Objective
    render: Callable[[Row], Row | str] | None = None

    def read(self, found: Iterable[Item], findings: Findings) -> Iterator[Row]:
        """The good rows, under the columns' usual names, while ``findings`` takes down the bad ones and the empty ones."""
        for item in found:
            findings.rows += 1
            row = self.canonical(item)
            if isinstance(row, dict) and _has_surrogate(row):
                row = "has half of a character that takes two (a lone surrogate such as \\ud83d): it was cut in the middle"
            if isinstance(row, str):
                findings.add(item.place, row)
            elif row is None:
                findings.empty += 1
            else:
                yield row

    def canonical(self, item: Item) -> Row | str | None:
        """The row under the columns' usual names; what is wrong with it, as a text; or None where nothing can be learned from it."""
        if item.row is None:
            return item.problem
        row: Row | str = self.render(item.row) if self.render else item.row
        if isinstance(row, str):
            return row
        match self.layout:
            case "messages":
                return _chat(row, self.columns)
            case "instruction":
                return _instruction(row, self.columns)
            case "preference":
                return _preference(row, self.columns)
            case "promptCompletion":
                return _pair(row, self.columns, labelled=self.objective == "kto")
        text = _text(row, self.columns.text)
        return text if isinstance(text, _Wrong) else {"text": text} if text.strip() else None


def reader(files: list[DataFile], source: DatasetSource, objective: Objective, uri: str) -> Reader:
    """How these files are to be read, within what ``spec.dataset.format`` allows, or told from the first row.

    Raises Failure: DATASET_INVALID for files without a row and for rows of which nothing can be made, SPEC_INVALID for a wrong template.
    """
    render = renderer(source.template) if source.template else None
    file = next((one for one in files if _has_content(one)), None)
    if file is None:
        raise _invalid("uri", f"{uri} is empty: it must have at least one row")
    if source.template is not None:
        layout: Layout = "text" if source.template.text is not None else "promptCompletion"
    elif source.format != "auto" and source.format != "text":
        layout = source.format
    elif kind_of(file) == "text":
        layout = "plain text"
    elif source.format == "text":
        layout = "text"
    else:
        layout = _detect(file, source.columns, objective, uri)
    if layout == "plain text" and (other := next((one for one in files if kind_of(one) != "text"), None)):
        raise _invalid(
            "uri",
            f"{file.name} is plain text, but {other.name} is {kind_of(other)}: all files of {uri} must be of one kind",
        )
    if layout != "plain text" and kind_of(file) == "text":
        raise _invalid(
            "uri",
            f"{file.name} must be jsonl, json, csv or parquet for {layout if source.template is None else 'a template'}, but it is plain text: "
            f"its first line is {_first_line(file)}",
        )
    _check_objective(layout, objective)
    return Reader(layout, source.columns if render is None else Columns(label=source.columns.label), objective, render)


def _has_content(file: DataFile) -> bool:
    if kind_of(file) == "text":
        return any(piece.strip() for piece in pieces(file))
    return next(items(file), None) is not None


def _first_line(file: DataFile) -> str:
    return quote(next(line for piece in pieces(file) for line in piece.splitlines() if line.strip()).encode())


def _detect(file: DataFile, columns: Columns, objective: Objective, uri: str) -> Layout:
    first = next(items(file))
    row = first.row
    if row is None:
        raise _invalid(
            "uri",
            f"{first.place} of {uri} {first.problem}: write a JSON object on each line, or a JSON array of objects",
        )
    if columns.chosen in row and columns.rejected in row and objective != "sft":
        return "preference"
    if columns.messages in row:
        return "messages"
    if columns.prompt in row and columns.completion in row:
        return "promptCompletion"
    if columns.instruction in row and _answer(row, columns) in row:
        return "instruction"
    if columns.text in row:
        return "text"
    if columns.chosen in row and columns.rejected in row:
        return "preference"
    raise _invalid(
        "columns",
        f"{first.place} of {uri} has the columns {_names(row)}; expected {columns.messages} (chat messages), {columns.prompt} and "
        f"{columns.completion}, {columns.instruction} and output or response, {columns.chosen} and {columns.rejected}, or {columns.text}: rename them, "
        "name yours in spec.dataset.columns, or make a text of them with spec.dataset.template",
    )


def _check_objective(layout: Layout, objective: Objective) -> None:
    """Raise Failure where the objective cannot learn from such rows."""
    if objective in PAIRED and layout != "preference":
        raise _invalid(
            "format",
            f"objective {objective} learns from a better and a worse answer (columns prompt, chosen and rejected), but the dataset is taken as {layout}",
        )
    if objective == "kto" and layout != "promptCompletion":
        raise _invalid(
            "format",
            f"objective kto learns from prompts, completions and a label that says whether the completion is wanted, but the dataset is taken as {layout}",
        )
    if objective == "sft" and layout == "preference":
        raise _invalid(
            "format",
            "the dataset has a better and a worse answer in each row, of which objective sft makes nothing: set spec.objective to dpo, orpo or reward, or "
            "name the better answer's column as completion in spec.dataset.columns",
        )


class _Wrong(str):
    """What is wrong with a row: a text, told apart from the texts of rows."""

    __slots__ = ()


def _has_surrogate(value: Any) -> bool:
    """Whether a text in it is no Unicode text, which no tokenizer takes."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(map(_has_surrogate, value.values()))
    return isinstance(value, list) and any(map(_has_surrogate, value))


def _text(row: Row, name: str) -> str:
    if name not in row:
        return _Wrong(f"has no column {name!r}; found columns: {_names(row)}")
    if not isinstance(row[name], str):
        return _Wrong(f"column {name!r} must be text, found {_type(row[name])}")
    return str(row[name])


def _turns(row: Row, name: str) -> list[Message] | _Wrong:
    """A column of chat messages, in which the fields that are null are left out: parquet gives each message the fields of all."""
    if name not in row:
        return _Wrong(f"has no column {name!r}; found columns: {_names(row)}")
    found = _parsed(row[name])
    if not isinstance(found, list) or not found:
        return _Wrong(f"column {name!r} must be a list of messages, found {_type(found)}")
    turns = []
    for index, message in enumerate(found, start=1):
        kept = {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else {}
        calls = isinstance(kept.get("tool_calls"), list) and kept["tool_calls"]
        if not isinstance(kept.get("role"), str) or not (
            isinstance(kept.get("content"), str) or (calls and "content" not in kept)
        ):
            shown = quote(json.dumps(message, default=str).encode())
            return _Wrong(f"message {index} in column {name!r} must have the texts role and content, found {shown}")
        turns.append({"content": "", **kept})
    return turns


def _chat(row: Row, columns: Columns) -> Row | _Wrong | None:
    turns = _turns(row, columns.messages)
    if isinstance(turns, _Wrong):
        return turns
    answers = [message for message in turns if message["role"] == "assistant"]
    if not answers:
        roles = ", ".join(dict.fromkeys(message["role"] for message in turns))
        return _Wrong(
            f"column {columns.messages!r} has no message of the role assistant to learn from; found roles: {roles}"
        )
    if not any(message["content"].strip() or message.get("tool_calls") for message in answers):
        return None
    tools = _tools(row, columns.tools)
    return tools if isinstance(tools, _Wrong) else {"messages": turns, **({"tools": tools} if tools else {})}


def _tools(row: Row, name: str) -> list[Any] | _Wrong | None:
    tools = _parsed(row.get(name))
    if tools is None or tools == "":
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return _Wrong(f"column {name!r} must be a list of tools, found {_type(tools)}")
    return tools


def _instruction(row: Row, columns: Columns) -> Row | _Wrong | None:
    instruction, answer = _text(row, columns.instruction), _text(row, _answer(row, columns))
    if wrong := _first_wrong(instruction, answer):
        return wrong
    about = columns.input or ("input" if "input" in row else "context")
    given = row.get(about)
    if given is not None and not isinstance(given, str):
        return _Wrong(f"column {about!r} must be text, found {_type(given)}")
    return {"instruction": instruction, "input": given or "", "output": answer} if answer.strip() else None


def _answer(row: Row, columns: Columns) -> str:
    """The name of the answer's column: Alpaca's, unless only Dolly's is there."""
    return columns.output or ("response" if "response" in row and "output" not in row else "output")


def _pair(row: Row, columns: Columns, *, labelled: bool) -> Row | _Wrong | None:
    """A prompt and its completion: two texts, or two lists of messages."""
    chat = isinstance(row.get(columns.completion), list)
    prompt: Any = _turns(row, columns.prompt) if chat else _text(row, columns.prompt)
    completion: Any = _turns(row, columns.completion) if chat else _text(row, columns.completion)
    if wrong := _first_wrong(prompt, completion):
        return wrong
    label = _label(row, columns.label) if labelled else None
    if isinstance(label, _Wrong):
        return label
    if not _says_something(completion):
        return None
    return {"prompt": prompt, "completion": completion, **({"label": label} if labelled else {})}


def _label(row: Row, name: str) -> bool | _Wrong:
    if name not in row:
        return _Wrong(f"has no column {name!r}; found columns: {_names(row)}")
    value = row[name].lower() if isinstance(row[name], str) else row[name]
    if value in (True, "true", "1"):
        return True
    if value in (False, "false", "0"):
        return False
    return _Wrong(f"column {name!r} must be true or false, found {quote(json.dumps(value, default=str).encode())}")


def _preference(row: Row, columns: Columns) -> Row | _Wrong | None:
    """A prompt with a better and a worse answer, as texts or as messages; what both answers begin with is the prompt where there is none of its own."""
    chat = isinstance(_parsed(row.get(columns.chosen)), list)
    read: Callable[[Row, str], Any] = _turns if chat else _text
    chosen, rejected = read(row, columns.chosen), read(row, columns.rejected)
    if wrong := _first_wrong(chosen, rejected):
        return wrong
    prompt: Any = _parsed(row.get(columns.prompt))
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
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _turns(row, columns.prompt)
        if isinstance(prompt, _Wrong):
            return prompt
    elif columns.prompt in row:
        prompt = _text(row, columns.prompt)
        if isinstance(prompt, _Wrong):
            return prompt
    else:
        prompt, chosen, rejected = _common(chosen, rejected)
    if chat and any(turns and turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
        return _Wrong(
            f"columns {columns.chosen!r} and {columns.rejected!r} must end with a message of the role assistant"
        )
    if chosen == rejected or not _says_something(chosen) or not _says_something(rejected):
        return None
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _common(chosen: str, rejected: str) -> tuple[str, str, str]:
    """What two texts begin with, up to the last whole word, and the rest of each."""
    same = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    while same and not chosen[same - 1].isspace():
        same -= 1
    return chosen[:same], chosen[same:], rejected[same:]


def is_chat(row: Row) -> bool:
    """Whether a row is made of messages, of which only a chat template can make a text."""
    return any(isinstance(row.get(name), list) for name in ("messages", "completion", "chosen"))


def _says_something(answer: str | list[Message]) -> bool:
    if isinstance(answer, str):
        return bool(answer.strip())
    return any(message["content"].strip() or message.get("tool_calls") for message in answer)


def _parsed(value: Any) -> Any:
    """A list that a file of texts, such as CSV, holds as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _first_wrong(*values: Any) -> _Wrong | None:
    return next((value for value in values if isinstance(value, _Wrong)), None)


def refuse(findings: Findings, layout: Layout, uri: str) -> None:
    """Raise Failure(DATASET_INVALID) if there are bad rows, or no good one."""
    if findings.bad:
        more = f"; {findings.bad - len(findings.shown)} more" if findings.bad > len(findings.shown) else ""
        raise _invalid(
            "columns",
            f"{findings.bad} of {findings.rows} rows of {uri} cannot be used: {'; '.join(findings.shown)}{more}. "
            "Correct these rows, or name the columns in spec.dataset.columns",
        )
    if findings.rows == findings.empty:
        raise _invalid("uri", f"{uri} has no row with a text to learn from (taken as {layout}, {findings.rows} rows)")


def _invalid(name: str, message: str) -> Failure:
    return Failure(Reason.DATASET_INVALID, message, f"spec.dataset.{name}")


def _names(row: Row) -> str:
    return ", ".join(list(row)[:20]) or "none"


def _type(value: object) -> str:
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
