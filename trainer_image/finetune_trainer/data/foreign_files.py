"""Recognise files that hold neither rows nor plain text, such as archives and web pages; refuse them with a remedy."""

import re

from finetune_artifacts.git_lfs import POINTER_REMEDY, is_pointer
from finetune_trainer.data.columns import PROMPTS, USUAL
from finetune_trainer.data.compression import damaged_file
from finetune_trainer.data.csv_rows import SEPARATORS
from finetune_trainer.data.values import quote

PACK_AGAIN = "unpack it, or pack it with gzip or zstd"
SAVE_AS_ROWS = "save the rows as jsonl or parquet"
SAVE_TEXT = "save its text"
MAGIC = {
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook or Word document: save it as CSV, or save its text",
    b"BZh91AY&SY": f"is packed with bzip2: {PACK_AGAIN}",
    b"\xfd7zXZ\x00": f"is packed with xz: {PACK_AGAIN}",
    b"\x04\x22\x4d\x18": f"is packed with lz4: {PACK_AGAIN}",
    b"\x02\x21\x4c\x18": f"is packed with lz4: {PACK_AGAIN}",
    b"\xff\x06\x00\x00sNaPpY": f"is packed with Snappy: {PACK_AGAIN}",
    b"LZIP\x01": f"is packed with lzip: {PACK_AGAIN}",
    b"\x1f\x9d": f"is packed with compress: {PACK_AGAIN}",
    b"\x5d\x00\x00": f"is packed with lzma: {PACK_AGAIN}",
    b"7z\xbc\xaf\x27\x1c": f"is a 7z archive: {PACK_AGAIN}",
    b"Rar!\x1a\x07": f"is a RAR archive: {PACK_AGAIN}",
    b"FEA1": "is an old Feather file: save it as parquet",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file: save it as parquet",
    b"Obj\x01": "is an Avro file: save it as parquet",
    b"\x93NUMPY": f"is a NumPy array: {SAVE_AS_ROWS}",
    b"SQLite format 3\x00": "is an SQLite database: save the table as CSV or parquet",
    b"GGUF\x03\x00": "is a model in GGUF format, not a dataset",
    b"%PDF-": f"is a PDF document: {SAVE_TEXT}",
    b"%!PS": f"is a PostScript document: {SAVE_TEXT}",
    b"{\\rtf": f"is an RTF document: {SAVE_TEXT}",
    b"\x89PNG\r\n\x1a\n": "is a picture, not a dataset",
    b"\xff\xd8\xff": "is a picture, not a dataset",
}
"""First bytes of files of other kinds, with what is wrong with such a file."""
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
ZIP_MEMBERS = {
    b"xl/": "is an Excel workbook: save it as CSV or parquet",
    b"word/": f"is a Word document: {SAVE_TEXT}",
    b"data.pkl": f"is a PyTorch file, which can run code: {SAVE_AS_ROWS}",
    b".npy": f"is a NumPy archive: {SAVE_AS_ROWS}",
}
"""Parts of the names of files in a zip archive, with what is wrong with such a file."""
PICKLE = re.compile(rb"\x80[\x02-\x05]")
"""First bytes of a Python pickle: its protocol."""
TAR_MAGIC = slice(257, 262)
"""Position of the bytes ``ustar`` in a tar archive."""
BINARY_SUFFIXES = {".parquet": "parquet", ".arrow": "Arrow", ".feather": "Feather", ".orc": "parquet or Arrow"}
"""Suffixes of binary formats. A valid file of these has been recognised before, by its first bytes."""
MARKUP = {
    re.compile(
        rb"(?:<!--(?:(?!-->).)*-->\s*)*(?:<!doctype\s+html|<html[\s>]|<head[\s>]|<body[\s>])", re.IGNORECASE | re.DOTALL
    ): ("is an HTML page, perhaps one that asks to sign in"),
    re.compile(rb"<\?xml\s|<!doctype\s|<Error>\s*<Code>", re.IGNORECASE): (
        "is an XML document, perhaps the error message of a storage"
    ),
}
"""How documents in HTML and XML begin. Chats begin with other tags, such as ``<s>``, ``<think>`` and ``<|user|>``."""
FIRST_COLUMN = re.compile(rb"(?:---[ \t]*\r?\n)?-[ \t]+(\w+)[ \t]*:(?=\s)")
"""How a list of objects in YAML begins, with its first column."""
PYTHON_ROW = re.compile(rb"(?:[\[(]\s*)?\{\s*u?'(?:[^'\\\n]|\\.)*'\s*:")
"""How a dict in Python's notation begins, or a list of dicts."""
KNOWN_COLUMNS = {*PROMPTS, "answer", *(name for names in USUAL.values() for name in names)}


def refuse_foreign(start: bytes, name: str, suffix: str) -> None:
    """Check that a file may hold rows or text, after parquet and Arrow have been recognised.

    Args:
        start: The first bytes of the unpacked file.
        name: The file's name for the message.
        suffix: The suffix of the unpacked file's name.

    Raises:
        Failure: DATASET_INVALID: it is a file of another kind.
    """
    if is_pointer(start):
        raise damaged_file(name, POINTER_REMEDY)
    if problem := next((text for magic, text in MAGIC.items() if start.startswith(magic)), None):
        raise damaged_file(name, problem)
    if start.startswith(ZIP_MAGIC):
        kind = next((text for member, text in ZIP_MEMBERS.items() if member in start), None)
        raise damaged_file(name, kind or f"is a zip archive or an Excel workbook: {PACK_AGAIN}; save a workbook as CSV")
    if start[TAR_MAGIC] == b"ustar":
        raise damaged_file(name, f"is a tar archive: {PACK_AGAIN}")
    if PICKLE.match(start):
        raise damaged_file(name, f"is a Python pickle, which can run code: {SAVE_AS_ROWS}")
    if suffix in BINARY_SUFFIXES:
        raise damaged_file(name, f"is no {BINARY_SUFFIXES[suffix]} file, it begins with {quote(start)}")


def find_markup(text: bytes) -> str:
    """Say that a text is a document in HTML or XML; empty if it is none."""
    return next((problem for pattern, problem in MARKUP.items() if pattern.match(text)), "")


def find_notation(text: bytes, suffix: str) -> str:
    """Say that a text which is no JSON has rows all the same, or another document's notation; empty if it is prose.

    Args:
        text: The beginning of the text.
        suffix: The suffix of the unpacked file's name.
    """
    first_line = re.split(rb"[\r\n]", text, maxsplit=1)[0].decode(errors="replace")
    if PYTHON_ROW.match(text):
        return f"has rows in Python's notation, not in JSON ({quote(first_line)}): write each with json.dumps(row)"
    row = FIRST_COLUMN.match(text)
    if suffix in (".yaml", ".yml") or (row and row[1].decode(errors="replace") in KNOWN_COLUMNS):
        return f"is YAML ({quote(first_line)}): {SAVE_AS_ROWS}"
    if suffix in (".html", ".htm", ".xml"):
        return f"is a document with markup ({quote(first_line)}): {SAVE_TEXT}"
    if _is_header(first_line):
        return f"begins like a table ({quote(first_line)}): let its name end with .csv or .tsv"
    return ""


def _is_header(line: str) -> bool:
    """Return whether a line names columns only, and at least two that datasets usually have."""
    tables = ([cell.strip(' "') for cell in line.split(separator)] for separator in SEPARATORS)
    return any(
        all(cell.isidentifier() or not cell for cell in cells) and len(KNOWN_COLUMNS.intersection(cells)) > 1
        for cells in tables
    )
