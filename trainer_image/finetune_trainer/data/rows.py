"""Detect the format of a dataset and read its rows, with their problems.

It needs no tokenizer, because the preflight uses it too.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from finetune_api.dataset import Columns, DatasetSource
from finetune_api.finetunejob import Objective
from finetune_api.reasons import Reason
from finetune_trainer.data import answers, chats, row_formats
from finetune_trainer.data.columns import (
    Layout,
    ask_about_unused,
    detect_layout,
    find_columns,
    find_misplaced,
    find_named,
    find_unused,
)
from finetune_trainer.data.files import detect_format, read_rows, read_text
from finetune_trainer.data.json_rows import FileRow
from finetune_trainer.data.sources import DataFile
from finetune_trainer.data.templates import make_renderer
from finetune_trainer.data.values import Row, RowError, column_names, is_blank, quote
from finetune_trainer.runtime.failures import Failure

MAX_NAMED_ROWS = 5
"""How many bad rows a message names."""
MAX_NAMED_COLUMNS = 20
"""About how many columns of each kind are reported."""
SEARCHED_ROWS = 1000
"""Number of first rows in which a system prompt is looked for."""
PAIRED_OBJECTIVES = ("dpo", "orpo", "reward")
"""Objectives that learn from a better and a worse answer."""


@dataclass
class Findings:
    """Count the rows that were read, and the bad and the empty ones among them."""

    rows: int = 0
    bad: int = 0
    empty: int = 0
    shown: list[str] = field(default_factory=list)
    used: dict[str, None] = field(default_factory=dict)
    """Columns that the format uses, in the order in which they were found."""
    unused: dict[str, None] = field(default_factory=dict)
    """Columns that it does not use."""
    fields: set[str] = field(default_factory=set)
    """Fields that may remedy bad rows."""
    location: str = ""
    """Location of the row that was read last."""

    def add(self, location: str, text: str, field: str = "spec.dataset.columns") -> None:
        """Add one bad row."""
        self.bad += 1
        self.fields.add(field)
        if len(self.shown) < MAX_NAMED_ROWS:
            self.shown.append(f"{location}: {text}")

    def refuse(self, text: str, field: str = "spec.dataset.columns", /) -> None:
        """Add the row that was read last as a bad one; ``field`` is the one that may remedy it."""
        self.add(self.location, text, field)

    def note_columns(self, used: list[str], unused: list[str]) -> None:
        """Add the columns of one row that its format uses, and those that it does not use."""
        for noted, names in ((self.used, used), (self.unused, unused)):
            if len(noted) < MAX_NAMED_COLUMNS:
                noted.update(dict.fromkeys(names))


def describe_layout(layout: str, used: Iterable[str], unused: Iterable[str]) -> str:
    """Describe how a dataset is read: its format, the columns that it uses, and those that it does not use."""
    notes = [f"columns {', '.join(used)}" if used else "", f"not used: {', '.join(unused)}" if unused else ""]
    return layout + (f" ({'; '.join(part for part in notes if part)})" if any(notes) else "")


@dataclass(frozen=True)
class Reader:
    """Read the rows of a dataset with a known format and known column names.

    ``as_chat`` says that texts become messages, because one of the first rows has a system prompt.
    """

    layout: Layout
    columns: Columns
    objective: Objective
    render: Callable[[Row], Row | str] | None = None
    as_chat: bool = False

    def read(self, file_rows: Iterable[FileRow], findings: Findings) -> Iterator[Row]:
        """Yield the good rows with the standard column names, and count all rows in ``findings``."""
        for item in file_rows:
            findings.rows += 1
            findings.location = item.location
            row = self.normalize(item, findings)
            if isinstance(row, dict) and _has_surrogate(row):
                row = "has half a character (a lone surrogate such as \\ud83d), because its text was cut there"
            if isinstance(row, str):
                findings.add(item.location, row)
            elif row is None:
                findings.empty += 1
            else:
                yield row

    def normalize(self, item: FileRow, findings: Findings) -> Row | str | None:
        """Return a row with the standard column names, its problem as a text, or None if it is empty."""
        if item.row is None:
            return item.problem
        row: Row | str = self.render(item.row) if self.render else item.row
        if isinstance(row, str):
            return row
        names = find_columns(row, self.columns, self.layout, labelled=self.objective == "kto")
        fields = self._read(row, names)
        if self.render is not None or isinstance(fields, str):
            return fields
        findings.note_columns([name for name in names.values() if name in row], find_unused(row, names))
        return fields and (ask_about_unused(row, names, self.columns, self.layout, fields) or fields)

    def _read(self, row: Row, names: dict[str, str]) -> Row | RowError | None:
        match self.layout:
            case "messages":
                return row_formats.read_messages(row, names)
            case "instruction":
                return row_formats.read_instruction(row, names)
            case "preference":
                return answers.read_preference(row, names, as_chat=self.as_chat)
            case "promptCompletion":
                return answers.read_prompt_completion(
                    row, names, labelled=self.objective == "kto", as_chat=self.as_chat
                )
        return row_formats.read_text(row, names)


def make_reader(files: list[DataFile], source: DatasetSource, objective: Objective, uri: str) -> Reader:
    """Decide how to read the files, by ``spec.dataset.format`` and their content.

    Raises:
        Failure: DATASET_INVALID for files without rows or in the wrong format, SPEC_INVALID for a wrong template.
    """
    render = make_renderer(source.template) if source.template else None
    file = next((candidate for candidate in files if _has_content(candidate)), None)
    if file is None:
        raise _invalid("uri", f"{uri} is empty: it must have at least one row")
    if source.template is not None:
        layout: Layout = "text" if source.template.text is not None else "promptCompletion"
    elif source.format != "auto" and source.format != "text":
        layout = source.format
    elif detect_format(file) == "text":
        layout = "plain text"
    elif source.format == "text":
        layout = "text"
    else:
        layout = _detect_layout(file, source.columns, objective, uri)
    if layout == "plain text" and (
        other := next((candidate for candidate in files if detect_format(candidate) != "text"), None)
    ):
        raise _invalid(
            "uri",
            f"{file.name} is plain text, but {other.name} is {detect_format(other)}: "
            f"all files of {uri} must have the same format",
        )
    if layout != "plain text" and detect_format(file) == "text":
        raise _invalid(
            "uri",
            f"{file.name} must be jsonl, json, csv or parquet for "
            f"{layout if source.template is None else 'a template'}, but it is plain text: "
            f"its first line is {_first_line(file)}",
        )
    _check_objective(layout, objective, file, source.columns)
    columns = source.columns if render is None else Columns(label=source.columns.label)
    if misplaced := find_misplaced(columns, layout, labelled=objective == "kto"):
        raise _invalid(
            f"columns.{misplaced}",
            f"is {getattr(columns, misplaced)!r}, but the rows are read as {layout}, which has no such column: remove "
            "it, or set spec.dataset.format",
        )
    return Reader(layout, columns, objective, render, as_chat=render is None and _has_system(file, columns, layout))


def _has_system(file: DataFile, columns: Columns, layout: Layout) -> bool:
    """Return whether one of the first rows of prompts and answers has a system prompt."""
    if layout not in ("promptCompletion", "preference"):
        return False
    first_rows = (item.row for item in itertools.islice(read_rows(file), SEARCHED_ROWS) if item.row)
    return any(not is_blank(row.get(find_columns(row, columns, layout)["system"])) for row in first_rows)


def _has_content(file: DataFile) -> bool:
    if detect_format(file) == "text":
        return any(piece.strip() for piece in read_text(file))
    return next(read_rows(file), None) is not None


def _first_line(file: DataFile) -> str:
    return quote(next(line for piece in read_text(file) for line in piece.splitlines() if line.strip()).encode())


def _detect_layout(file: DataFile, columns: Columns, objective: Objective, uri: str) -> Layout:
    first_row = next(read_rows(file))
    row = first_row.row
    if row is None:
        is_json = detect_format(file) in ("json", "jsonl")
        remedy = ": write a JSON object on each line, or a JSON array of objects" if is_json else ""
        raise _invalid(
            "uri",
            f"{first_row.location} of {uri} {first_row.problem}{remedy}",
        )
    if layout := detect_layout(row, columns, objective):
        return layout
    raise _invalid(
        "columns",
        f"{first_row.location} of {uri} has the columns {column_names(row)}; "
        "expected messages or conversations (a chat), prompt and completion, instruction and output or response, "
        "chosen and rejected, or text: "
        "rename them, name yours in spec.dataset.columns, or convert them with spec.dataset.template",
    )


def _check_objective(layout: Layout, objective: Objective, file: DataFile, columns: Columns) -> None:
    """Check that the objective can learn from such rows.

    Raises:
        Failure: DATASET_INVALID: it cannot.
    """
    if objective in PAIRED_OBJECTIVES and layout != "preference":
        raise _invalid(
            "format",
            f"objective {objective} learns from a better and a worse answer (columns prompt, chosen and rejected), "
            f"but the dataset is read as {layout}",
        )
    if objective == "kto" and layout != "promptCompletion":
        raise _invalid(
            "format",
            f"objective kto learns from prompts, completions and a label that says whether the completion is "
            f"desirable, but the dataset is read as {layout}",
        )
    if objective == "sft" and layout == "preference":
        row = next(read_rows(file)).row or {}
        names = find_columns(row, columns, layout)
        key = "completion" if names["prompt"] in row or not chats.is_chat(row.get(names["chosen"])) else "messages"
        raise _invalid(
            "format",
            "the dataset has a better and a worse answer in each row, which objective sft cannot use: set "
            f"spec.objective to dpo, orpo or reward, or set columns.{key} to {names['chosen']!r} to learn the better "
            "answers",
        )


def _has_surrogate(value: Any) -> bool:
    """Return whether a text in a value has a lone surrogate, which no tokenizer accepts."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(map(_has_surrogate, value.values()))
    return isinstance(value, list) and any(map(_has_surrogate, value))


def is_chat(row: Row) -> bool:
    """Return whether a row has messages, which need a chat template."""
    return any(isinstance(row.get(name), list) for name in ("messages", "completion", "chosen"))


def refuse_bad_rows(findings: Findings, layout: Layout, uri: str, columns: Columns | None = None) -> None:
    """Check that there are good rows and no bad ones, and that some row has each column of ``columns``.

    Raises:
        Failure: DATASET_INVALID otherwise.
    """
    if findings.bad:
        more = f"; {findings.bad - len(findings.shown)} more" if findings.bad > len(findings.shown) else ""
        raise Failure(
            Reason.DATASET_INVALID,
            f"{findings.bad} of {findings.rows} rows of {uri} cannot be used: {'; '.join(findings.shown)}{more}. "
            "Correct these rows, name the columns in spec.dataset.columns, or convert them with spec.dataset.template",
            next(iter(findings.fields)) if len(findings.fields) == 1 else "spec.dataset.columns",
        )
    for key, name in (find_named(columns) if columns and findings.used else {}).items():
        if name not in findings.used:
            unused = ", ".join(findings.unused) or "none"
            raise _invalid(
                f"columns.{key}", f"is {name!r}, but no row of {uri} has such a column; columns not used: {unused}"
            )
    if findings.rows == findings.empty:
        raise _invalid("uri", f"{uri} has no row with a text to learn from (read as {layout}, {findings.rows} rows)")


def _invalid(name: str, message: str) -> Failure:
    return Failure(Reason.DATASET_INVALID, message, f"spec.dataset.{name}")
