"""The rows of a dataset: what format they have, and what is wrong with them. Needs no tokenizer, so that the preflight can ask too."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.finetunejob import Columns, DatasetSource
from finetune_api.reasons import Reason
from finetune_trainer.failures import Failure

Format = Literal["plain text", "text", "promptCompletion", "messages"]
Row = dict[str, Any]
SHOWN = 5
"""So many bad rows are named in a message."""


@dataclass
class Findings:
    """What reading the rows brought: how many there were, and what is wrong with which. Row numbers are line numbers of the file."""

    rows: int = 0
    bad: int = 0
    empty: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, number: int, text: str) -> None:
        """Note one bad row."""
        self.bad += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"row {number}: {text}")


def detect(lines: Iterable[bytes], source: DatasetSource) -> Format:
    """The format of a file by its first line that is not blank, within what ``spec.dataset.format`` allows.

    Raises Failure(DATASET_INVALID) for an empty file, and for a jsonl file of which nothing can be made.
    """
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise _invalid("uri", f"{source.uri} is empty: it must have at least one row")
    row = _object(first)
    if row is None:
        jsonl = source.uri.endswith((".jsonl", ".json", ".ndjson"))
        if source.format in ("auto", "text") and not jsonl:
            return "plain text"
        raise _invalid(
            "uri", f"{source.uri} must have a JSON object on each line, but the first line is {_quote(first)}"
        )
    if source.format != "auto":
        return source.format
    columns = source.columns
    if columns.messages in row:
        return "messages"
    if columns.prompt in row and columns.completion in row:
        return "promptCompletion"
    if columns.text in row:
        return "text"
    raise _invalid(
        "columns",
        f"row 1 of {source.uri} has the columns {_names(row)}; expected {columns.messages} (chat messages), {columns.prompt} and "
        f"{columns.completion}, or {columns.text}: rename them, or name yours in spec.dataset.columns",
    )


def parse(lines: Iterable[bytes], layout: Format, columns: Columns, findings: Findings) -> Iterator[Row]:
    """The good rows of a jsonl file, while ``findings`` takes down the bad ones and the empty ones."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        findings.rows += 1
        try:
            row = json.loads(line)
        except ValueError as error:
            findings.add(number, f"is not JSON ({error}): {_quote(line)}")
            continue
        if not isinstance(row, dict):
            findings.add(number, f"is no JSON object: {_quote(line)}")
            continue
        problem = check(row, layout, columns)
        if problem:
            findings.add(number, problem)
        elif is_empty(row, layout, columns):
            findings.empty += 1
        else:
            yield row


def check(row: Row, layout: Format, columns: Columns) -> str | None:
    """What is wrong with one row, or None."""
    if layout == "messages":
        return _check_messages(row, columns.messages)
    wanted = (columns.text,) if layout == "text" else (columns.prompt, columns.completion)
    for name in wanted:
        if name not in row:
            return f"has no column {name!r}; found columns: {_names(row)}"
        if not isinstance(row[name], str):
            return f"column {name!r} must be text, found {_type(row[name])}"
    return None


def _check_messages(row: Row, name: str) -> str | None:
    if name not in row:
        return f"has no column {name!r}; found columns: {_names(row)}"
    messages = row[name]
    if not isinstance(messages, list) or not messages:
        return f"column {name!r} must be a list of messages, found {_type(messages)}"
    for index, message in enumerate(messages, start=1):
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            return f"message {index} in column {name!r} must have the texts role and content, found {_quote(json.dumps(message).encode())}"
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        return f"column {name!r} has no message of the role assistant to learn from; found roles: {roles}"
    return None


def is_empty(row: Row, layout: Format, columns: Columns) -> bool:
    """Whether there is nothing to learn from in a well-formed row."""
    if layout == "messages":
        return not any(
            message["content"].strip() for message in row[columns.messages] if message["role"] == "assistant"
        )
    return not row[columns.text if layout == "text" else columns.completion].strip()


def refuse(findings: Findings, source: DatasetSource, uri: str) -> None:
    """Raise Failure(DATASET_INVALID) if there are bad rows, or no good one."""
    if findings.bad:
        more = f"; {findings.bad - len(findings.shown)} more" if findings.bad > len(findings.shown) else ""
        raise _invalid(
            "columns",
            f"{findings.bad} of {findings.rows} rows of {uri} cannot be used: {'; '.join(findings.shown)}{more}. "
            "Correct these rows, or name the columns in spec.dataset.columns",
        )
    if findings.rows == findings.empty:
        raise _invalid(
            "uri", f"{uri} has no row with a text to learn from (format {source.format}, {findings.rows} rows)"
        )


def _invalid(name: str, message: str) -> Failure:
    return Failure(Reason.DATASET_INVALID, message, f"spec.dataset.{name}")


def _object(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


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


def _quote(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace").strip()
    return repr(text if len(text) <= 60 else text[:59] + "…")
