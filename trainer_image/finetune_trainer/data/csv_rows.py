"""Read the rows of tables in text: CSV and TSV, with the separator that the first line has."""

import csv
import io
import re
from collections.abc import Iterator

from finetune_trainer.data.compression import damaged_file
from finetune_trainer.data.encodings import UTF8_REMEDY
from finetune_trainer.data.json_rows import MAX_ROW_CHARACTERS, TOO_LONG, FileRow

SEPARATORS = (",", ";", "\t", "|")
QUOTED = re.compile(r'"(?:[^"]|"")*"')
CSV_ERRORS = {
    "unexpected end of data": "a quoted field has no end",
    "expected after": "a field goes on after its closing quote; write a quote inside a field twice",
    "field larger than": TOO_LONG,
}
"""Parts of the messages of Python's csv module, in plain words."""
JOINED = (
    "has a quoted field that goes over several lines and contains tabs: a quote without its partner joins rows. Put "
    "the field in quotes and write each quote in it twice, or save the rows as jsonl"
)


def read_table(stream: io.BufferedReader, start: bytes, name: str, separator: str) -> Iterator[FileRow]:
    """Read the rows of a table whose first line names the columns; blank lines are skipped.

    Args:
        stream: The unpacked file.
        start: Its first bytes.
        name: Its name for messages.
        separator: The separator that the file's name promises. Another one is used if the first line has only that.

    Raises:
        Failure: The first line cannot be used, or the text is not UTF-8.
    """
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    separator, spaced = _find_separator(start, separator)
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=separator, skipinitialspace=spaced, strict=True)
        line = 1
        try:
            names = _name_columns(next((cells for cells in reader if cells), []), name)
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield _make_row(f"{name} line {line}", names, cells, tabs=separator == "\t")
                line = reader.line_num + 1
        except csv.Error as error:
            problem = next((words for part, words in CSV_ERRORS.items() if part in str(error)), str(error))
            yield FileRow(f"{name} line {line}", problem=f"is not CSV: {problem}")
        except UnicodeDecodeError as error:
            raise damaged_file(
                name, f"is not UTF-8 text after line {reader.line_num}: {error.reason}: {UTF8_REMEDY}"
            ) from error


def _find_separator(start: bytes, usual: str) -> tuple[str, bool]:
    """Return the separator of the first line, and whether a space follows it everywhere."""
    unquoted = QUOTED.sub("quoted", start.decode("utf-8-sig", errors="replace")).lstrip("\r\n")
    header = re.split(r"[\r\n]", unquoted, maxsplit=1)[0]
    separator = usual if usual in header else max((usual, *SEPARATORS), key=header.count)
    return separator, header.count(separator) == header.count(f"{separator} ") > 0


def _name_columns(cells: list[str], name: str) -> list[str]:
    """Return the names of the columns; those without a name, such as pandas' index, get the name that pandas gives."""
    if any(_joins_lines(cell) for cell in cells):
        raise damaged_file(name, f"{JOINED} (its first line)")
    names = [cell.strip() or f"Unnamed: {number}" for number, cell in enumerate(cells)]
    refuse_repeated(names, name, "its first line")
    return names


def refuse_repeated(names: list[str], name: str, where: str) -> None:
    """Check that the columns' names differ.

    Raises:
        Failure: DATASET_INVALID: two are the same.
    """
    if len(set(names)) != len(names):
        raise damaged_file(name, f"has two columns of the same name in {where}: {', '.join(names)}")


def _make_row(location: str, names: list[str], cells: list[str], *, tabs: bool) -> FileRow:
    if tabs and any(_joins_lines(cell) for cell in cells):
        return FileRow(location, problem=JOINED)
    if len(cells) > len(names):
        return FileRow(location, problem=f"has more fields than the {len(names)} columns of the first line")
    if len(names) > 1 and [cell.strip("\ufeff ") for cell in cells] == names:
        return FileRow(location, problem="names the columns again: remove this line, where two files were joined")
    return FileRow(location, dict(zip(names, cells, strict=False)))


def _joins_lines(cell: str) -> bool:
    """Return whether a field of a table with tabs may be several rows, joined by a quote without its partner."""
    return "\t" in cell and ("\n" in cell or "\r" in cell)
