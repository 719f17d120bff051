"""Recognise files that hold no rows, such as archives and pointers of Git LFS, and refuse them with a remedy."""

import re

from finetune_artifacts.git_lfs import POINTER_REMEDY, is_pointer
from finetune_trainer.data.compression import damaged_file
from finetune_trainer.data.values import quote

PACK_AGAIN = "unpack it, or pack it with gzip or zstd"
MAGIC = {
    b"PK\x03\x04": f"is a zip archive or an Excel workbook: {PACK_AGAIN}; save a workbook as CSV or parquet",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook: save it as CSV or parquet",
    b"BZh91AY&SY": f"is packed with bzip2: {PACK_AGAIN}",
    b"\xfd7zXZ\x00": f"is packed with xz: {PACK_AGAIN}",
    b"7z\xbc\xaf\x27\x1c": f"is a 7z archive: {PACK_AGAIN}",
    b"Rar!\x1a\x07": f"is a RAR archive: {PACK_AGAIN}",
    b"FEA1": "is an old Feather file: save it as parquet",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file: save it as parquet",
    b"SQLite format 3\x00": "is an SQLite database: save the table as CSV or parquet",
    b"%PDF-": "is a PDF document: save its text",
}
"""First bytes of files of other kinds, with what is wrong with such a file."""
PICKLE = re.compile(rb"\x80[\x02-\x05]")
"""First bytes of a Python pickle: its protocol."""
TAR_MAGIC = slice(257, 262)
"""Position of the bytes ``ustar`` in a tar archive."""
BINARY_SUFFIXES = {".parquet": "parquet", ".arrow": "Arrow", ".feather": "Feather"}
"""Suffixes of binary formats. A valid file of these has been recognised before, by its first bytes."""


def refuse_foreign(start: bytes, name: str, suffix: str) -> None:
    """Check that a file may hold rows, after parquet and Arrow have been recognised.

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
    if start[TAR_MAGIC] == b"ustar":
        raise damaged_file(name, f"is a tar archive: {PACK_AGAIN}")
    if PICKLE.match(start):
        raise damaged_file(name, "is a Python pickle, which can run code: save the rows as jsonl or parquet")
    if suffix in BINARY_SUFFIXES:
        raise damaged_file(name, f"is no {BINARY_SUFFIXES[suffix]} file, it begins with {quote(start)}")
