"""Detect the format of a dataset and read its rows, with their problems.

It needs no tokenizer, because the preflight uses it too.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.dataset import Columns, DatasetSource
from finetune_api.finetunejob import Objective
from finetune_api.reasons import Reason
from finetune_trainer.data import row_formats
from finetune_trainer.data.files import FileRow, detect_format, quote, read_rows, read_text
from finetune_trainer.data.sources import DataFile
from finetune_trainer.data.templates import make_renderer
from finetune_trainer.runtime.failures import Failure

Layout = Literal["plain text", "text", "promptCompletion", "messages", "instruction", "preference"]
MAX_NAMED_ROWS = 5
"""How many bad rows a message names."""
PAIRED_OBJECTIVES = ("dpo", "orpo", "reward")
"""Objectives that learn from a better and a worse answer."""


@dataclass
class Findings:
    """Count the rows that were read, and the bad and the empty ones among them."""

    rows: int = 0
    bad: int = 0
    empty: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, location: str, text: str) -> None:
        """Add one bad row."""
        self.bad += 1
        if len(self.shown) < MAX_NAMED_ROWS:
            self.shown.append(f"{location}: {text}")


@dataclass(frozen=True)
class Reader:
    """Read the rows of a dataset with a known format and known column names."""

    layout: Layout
    columns: Columns
    objective: Objective
    render: Callable[[row_formats.Row], row_formats.Row | str] | None = None

    def read(self, found: Iterable[FileRow], findings: Findings) -> Iterator[row_formats.Row]:
        """Yield the good rows with the standard column names, and count all rows in ``findings``."""
        for item in found:
            findings.rows += 1
            row = self.normalize(item)
            if isinstance(row, dict) and _has_surrogate(row):
                row = "has half of a character (a lone surrogate such as \\ud83d): its text was cut in the middle"
            if isinstance(row, str):
                findings.add(item.location, row)
            elif row is None:
                findings.empty += 1
            else:
                yield row

    def normalize(self, item: FileRow) -> row_formats.Row | str | None:
        """Return a row with the standard column names, its problem as a text, or None if it is empty."""
        if item.row is None:
            return item.problem
        row: row_formats.Row | str = self.render(item.row) if self.render else item.row
        if isinstance(row, str):
            return row
        match self.layout:
            case "messages":
                return row_formats.read_messages(row, self.columns)
            case "instruction":
                return row_formats.read_instruction(row, self.columns)
            case "preference":
                return row_formats.read_preference(row, self.columns)
            case "promptCompletion":
                return row_formats.read_prompt_completion(row, self.columns, labelled=self.objective == "kto")
        text = row_formats.read_text_column(row, self.columns.text)
        return text if isinstance(text, row_formats.RowError) else {"text": text} if text.strip() else None


def make_reader(files: list[DataFile], source: DatasetSource, objective: Objective, uri: str) -> Reader:
    """Detect how the files are to be read, within what ``spec.dataset.format`` allows.

    Raises:
        Failure: DATASET_INVALID for files without rows or in the wrong format, SPEC_INVALID for a wrong template.
    """
    render = make_renderer(source.template) if source.template else None
    file = next((one for one in files if _has_content(one)), None)
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
    if layout == "plain text" and (other := next((one for one in files if detect_format(one) != "text"), None)):
        raise _invalid(
            "uri",
            f"{file.name} is plain text, but {other.name} is {detect_format(other)}: "
            f"all files of {uri} must be of one kind",
        )
    if layout != "plain text" and detect_format(file) == "text":
        raise _invalid(
            "uri",
            f"{file.name} must be jsonl, json, csv or parquet for "
            f"{layout if source.template is None else 'a template'}, but it is plain text: "
            f"its first line is {_first_line(file)}",
        )
    _check_objective(layout, objective)
    return Reader(layout, source.columns if render is None else Columns(label=source.columns.label), objective, render)


def _has_content(file: DataFile) -> bool:
    if detect_format(file) == "text":
        return any(piece.strip() for piece in read_text(file))
    return next(read_rows(file), None) is not None


def _first_line(file: DataFile) -> str:
    return quote(next(line for piece in read_text(file) for line in piece.splitlines() if line.strip()).encode())


def _detect_layout(file: DataFile, columns: Columns, objective: Objective, uri: str) -> Layout:
    first = next(read_rows(file))
    row = first.row
    if row is None:
        raise _invalid(
            "uri",
            f"{first.location} of {uri} {first.problem}: write a JSON object on each line, or a JSON array of objects",
        )
    if columns.chosen in row and columns.rejected in row and objective != "sft":
        return "preference"
    if columns.messages in row:
        return "messages"
    if columns.prompt in row and columns.completion in row:
        return "promptCompletion"
    if columns.instruction in row and row_formats.answer_column(row, columns) in row:
        return "instruction"
    if columns.text in row:
        return "text"
    if columns.chosen in row and columns.rejected in row:
        return "preference"
    raise _invalid(
        "columns",
        f"{first.location} of {uri} has the columns {row_formats.column_names(row)}; "
        f"expected {columns.messages} (chat messages), {columns.prompt} and {columns.completion}, "
        f"{columns.instruction} and output or response, {columns.chosen} and {columns.rejected}, or {columns.text}: "
        "rename them, name yours in spec.dataset.columns, or make a text of them with spec.dataset.template",
    )


def _check_objective(layout: Layout, objective: Objective) -> None:
    """Check that the objective can learn from such rows.

    Raises:
        Failure: DATASET_INVALID if it cannot.
    """
    if objective in PAIRED_OBJECTIVES and layout != "preference":
        raise _invalid(
            "format",
            f"objective {objective} learns from a better and a worse answer (columns prompt, chosen and rejected), "
            f"but the dataset is taken as {layout}",
        )
    if objective == "kto" and layout != "promptCompletion":
        raise _invalid(
            "format",
            f"objective kto learns from prompts, completions and a label that says whether the completion is "
            f"wanted, but the dataset is taken as {layout}",
        )
    if objective == "sft" and layout == "preference":
        raise _invalid(
            "format",
            "the dataset has a better and a worse answer in each row, which objective sft cannot use: "
            "set spec.objective to dpo, orpo or reward, or name the better answer's column as completion in "
            "spec.dataset.columns",
        )


def _has_surrogate(value: Any) -> bool:
    """Return whether a text in a value has a lone surrogate, which no tokenizer accepts."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(map(_has_surrogate, value.values()))
    return isinstance(value, list) and any(map(_has_surrogate, value))


def is_chat(row: row_formats.Row) -> bool:
    """Return whether a row has messages, which need a chat template."""
    return any(isinstance(row.get(name), list) for name in ("messages", "completion", "chosen"))


def refuse_bad_rows(findings: Findings, layout: Layout, uri: str) -> None:
    """Check that there are good rows and no bad ones.

    Raises:
        Failure: DATASET_INVALID otherwise.
    """
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
