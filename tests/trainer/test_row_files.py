"""Files of every kind give the same rows; a damaged one, or a bad row in it, is found where it is."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import zstandard

from finetune_api.dataset import DatasetSource
from finetune_api.reasons import Reason
from finetune_trainer.data import rows
from finetune_trainer.data.files import detect_format, read_rows, read_text
from finetune_trainer.data.sources import DataFile
from finetune_trainer.runtime.failures import Failure
from tests.trainer.stored_rows import Row, file

pytestmark = pytest.mark.unit
ROWS = [
    {"prompt": f"Question {number}, “quoted”,\nin two lines?", "completion": f"Answer {number}."} for number in range(7)
]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def parquet(table_rows: list[Row]) -> bytes:
    """Return rows as a parquet file of several row groups."""
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table_rows), sink, row_group_size=3)
    return sink.getvalue()


def table(delimiter: str) -> bytes:
    """Return rows as a table of quoted fields."""
    import csv

    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


FILES = {
    "jsonl": ("rows.jsonl", JSONL),
    "jsonl of no known name": ("train", JSONL),
    "jsonl with blank lines and a byte order mark": ("rows.json", b"\xef\xbb\xbf" + JSONL.replace(b"}\n", b"}\n\n")),
    "json": ("rows.json", json.dumps(ROWS).encode()),
    "json in many lines": ("rows", b"\n " + json.dumps(ROWS, indent=4).encode()),
    "csv": ("rows.csv", table(",")),
    "tsv": ("rows.tsv", table("\t")),
    "parquet": ("rows", parquet(ROWS)),
}


def _streamed(content: bytes) -> bytes:
    """Return a zstd frame that does not say its size, as a pipe makes it."""
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return packer.compress(content) + packer.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "as it is": ("", lambda content: content),
    "gzip": (".gz", gzip.compress),
    "gzip in two parts": (".gz", lambda content: gzip.compress(content[:99]) + gzip.compress(content[99:])),
    "zstd": (".zst", zstandard.compress),
    "zstd in two parts, without a suffix": ("", lambda content: _streamed(content[:99]) + _streamed(content[99:])),
}


@pytest.mark.parametrize(
    ("name", "packed"),
    [(name, packed) for name in FILES for packed in PACKED if name != "parquet" or packed == "as it is"],
)
def test_every_kind_of_file_has_the_same_rows(name: str, packed: str) -> None:
    (label, content), (suffix, pack) = FILES[name], PACKED[packed]
    assert [item.row for item in read_rows(file(pack(content), label + suffix))] == ROWS


def test_a_row_is_named_by_its_line_and_in_parquet_by_its_number() -> None:
    assert [item.location for item in read_rows(file(JSONL.replace(b"\n", b"\n\n"), "a.jsonl"))][:2] == [
        "a.jsonl line 1",
        "a.jsonl line 3",
    ]
    array = b'[\n{"a": 1},\n\n{"a": 2}, {"a": 3},\n{"a":\n4}, {"a": 5}]'
    assert [item.location for item in read_rows(file(array, "a.json"))] == [
        f"a.json line {line}" for line in (2, 4, 4, 5, 6)
    ]
    assert [item.location for item in read_rows(file(table(","), "a.csv"))][:3] == [
        "a.csv line 2",
        "a.csv line 4",
        "a.csv line 6",
    ]
    assert [item.location for item in read_rows(file(parquet(ROWS), "a.parquet"))][-1] == "a.parquet row 7"


@pytest.mark.parametrize(
    ("name", "content", "location", "problem"),
    [
        ("a.jsonl", JSONL + b'{"prompt": \n', "a.jsonl line 8", "is not JSON"),
        ("a.jsonl", JSONL + b'["prompt"]\n', "a.jsonl line 8", "is not a JSON object: '[\"prompt\"]'"),
        ("a.jsonl", JSONL + b'{"prompt": "\xff"}\n', "a.jsonl line 8", "is not UTF-8 text"),
        ("a.json", b'[{"a": 1},\n{"a": 2}', "a.json line 2", "the array has no end"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', "a.json line 2", "is not JSON"),
        ("a.json", b"[1]", "a.json line 1", "is not a JSON object: '1'"),
        ("a.json", b'[{"a": 1}]\n{"a": 2}', "a.json line 2", "comes after the end of an array"),
        ("a.jsonl", JSONL + b'{"a": 1}{"a": 2}\n', "a.jsonl line 8", "is not JSON"),
        ("a.jsonl", JSONL + b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", "a.jsonl line 8", "nested more than"),
        ("a.jsonl", JSONL + b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}\n", "a.jsonl line 8", "nested more than"),
        ("a.json", b'[{"a": 1},\n' + b"[" * 200_000 + b"]" * 200_000 + b"]", "a.json line 2", "nested more than"),
        ("a.csv", b'a,b\n1,2\n1,2,3\n', "a.csv line 3", "has more fields than the 2 columns of the first line"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv line 2", "is not CSV: a quoted field has no end"),
        ("a.csv", b'a,b\n"1" 2,3\n', "a.csv line 2", "is not CSV: a field goes on after its closing quote"),
        ("a.csv", b"a,b\n1,2\n\n\r\n1,2,3\n", "a.csv line 5", "has more fields than the 2 columns"),
        ("a.csv", b"\n\na,b\n\n1,2,3\n", "a.csv line 5", "has more fields than the 2 columns"),
        ("a.csv", b"a,b\n1,2\n\xef\xbb\xbfa,b\n", "a.csv line 3", "names the columns again"),
        ("a.tsv", b'a\tb\n"5 inch\tok\na 6"\tfine\n', "a.tsv line 2", "a quote without its partner joins rows"),
        ("a.tsv", b'a\tb\n1\t2\n\n"5\tok\n\n6"\tfine\n', "a.tsv line 4", "a quote without its partner joins rows"),
        ("a.csv", b'a\tb\n"5 inch\tok\na 6"\tfine\n', "a.csv line 2", "a quote without its partner joins rows"),
        ("a.jsonl", b'{"a": 1},\n', "a.jsonl line 1", "is not JSON (a comma follows the object)"),
        ("a.jsonl", b"{'a': None}\n", "a.jsonl line 1", "is not JSON (it is Python's notation"),
        ("a.jsonl", b'{"a": 1 "b": 2}\n', "a.jsonl line 1", "Expecting ',' delimiter at character 9, where it has"),
        ("a.json", b'{"a": 1}\n{"b": "c\n', "a.json line 2", "Unterminated string starting at character 7"),
        ("a.json", b'{\n "a": 1\n}\n{\n "a"\n}\n', "a.json line 4", "is not JSON (Expecting ':' delimiter"),
        ("a.json", b'{"data": [{"text": "a"}]}', "a.json line 1",
         "is one object that holds its rows in the list 'data', which jq -c '.data[]' writes as"),
        ("a.json", b'\n{\n "version": 1,\n "data": [\n  {"text": "a"}\n ]\n}', "a.json line 2", "in the list 'data'"),
        ("a.json", b'{"my rows": [{"prompt": "a"}]}', "a.json line 1", "jq -c '.\"my rows\"[]'"),
    ],
)  # fmt: skip
def test_a_bad_row_is_found_where_it_is(name: str, content: bytes, location: str, problem: str) -> None:
    bad = [item for item in read_rows(file(content, name)) if item.row is None]
    assert [item.location for item in bad] == [location]
    assert problem in bad[0].problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(JSONL * 50)[:-30], "a.jsonl.gz cannot be unpacked, it is damaged or cut off"),
        ("a.jsonl.zst", zstandard.compress(JSONL * 50)[:9] + b"\xff" * 40, "a.jsonl.zst cannot be unpacked"),
        ("a.parquet", parquet(ROWS)[:-40], "a.parquet cannot be read as parquet, it is damaged or cut off"),
        ("a.parquet.gz", gzip.compress(parquet(ROWS)), "parquet compresses by itself, store it as it is"),
        ("a.csv", b"a,a\n1,2\n", "has two columns of the same name"),
        ("a.jsonl", JSONL.decode().encode("utf-16"), "a.jsonl is UTF-16 text: save it as UTF-8"),
        ("a.csv", table(",").decode().encode("utf-16-le"), "a.csv is UTF-16 text: save it as UTF-8"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv is not UTF-8 text after line 0"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, message: str) -> None:
    with pytest.raises(Failure) as caught:
        list(read_rows(file(content, name)))
    assert caught.value.reason is Reason.DATASET_INVALID
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"prompt;completion\nq;a, b\n", {"prompt": "q", "completion": "a, b"}),
        ("a.csv", b"prompt\tcompletion\nq\ta, b\n", {"prompt": "q", "completion": "a, b"}),
        ("a.tsv", b"prompt|completion\nq|a\n", {"prompt": "q", "completion": "a"}),
        ("a.csv", b"text;words,prompt\n1,2\n", {"text;words": "1", "prompt": "2"}),
        ("a.csv", b'"text; all"\n1;2\n', {"text; all": "1;2"}),
        ("a.csv", b'prompt, completion\nq, "a, b"\n', {"prompt": "q", "completion": "a, b"}),
        ("a.csv", b"prompt ,completion\nq, a\n", {"prompt": "q", "completion": " a"}),
        ("a.csv", b",prompt,completion\n0,q,a\n", {"Unnamed: 0": "0", "prompt": "q", "completion": "a"}),
        ("a.tsv", b"\tprompt\n0\tq\n", {"Unnamed: 0": "0", "prompt": "q"}),
        ("a.tsv", b'prompt\tcompletion\n"q\nr"\t"a\tb"\n', {"prompt": "q\nr", "completion": "a\tb"}),
        ("a.csv", b'{"prompt": "q, r", "completion": "a"}\n', {"prompt": "q, r", "completion": "a"}),
    ],
)
def test_a_table_is_read_with_the_separator_that_it_has(name: str, content: bytes, expected: Row) -> None:
    assert [item.row for item in read_rows(file(content, name))] == [expected]


def test_lines_of_old_computers_and_joined_files_are_read() -> None:
    rows_read = [(item.location, item.row) for item in read_rows(file(b'{"a": 1}\r\r{"a": 2}\r', "a.jsonl"))]
    assert rows_read == [("a.jsonl line 1", {"a": 1}), ("a.jsonl line 3", {"a": 2})]
    assert [item.row for item in read_rows(file(b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n', "a.jsonl"))] == [
        {"a": 1},
        {"a": 2},
    ]
    assert [item.row for item in read_rows(file(b'[{"a": 1}]\n\xef\xbb\xbf[{"a": 2}]', "a.json"))] == [
        {"a": 1},
        {"a": 2},
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a", "a.txt"])
def test_objects_over_several_lines_are_read_as_jq_writes_them(name: str) -> None:
    long = {"prompt": "q", "completion": "a" * 100_000}
    content = "".join(json.dumps(row, indent=2) + "\n" for row in (*ROWS, long)).encode()
    found = list(read_rows(file(content, name)))
    assert [item.row for item in found] == [*ROWS, long]
    assert [item.location for item in found][:2] == [f"{name} line 1", f"{name} line 5"]
    assert [item.row for item in read_rows(file(json.dumps(long, indent=2).encode(), name))] == [long]


def test_a_list_of_messages_or_of_a_second_row_is_no_wrapper() -> None:
    for content in (
        b'{"messages": [{"role": "user", "content": "a"}]}',
        b'{"text": "a", "spans": [{"text": "b"}]}',
        b'{"turns": [{"text": "a"}]}\n{"turns": [{"text": "b"}]}',
    ):
        assert all(item.row for item in read_rows(file(content, "a.json")))


def test_arrays_on_each_line_are_all_read_and_nan_is_null() -> None:
    content = b'[{"a": 1}]\n[{"a": NaN}, {"a": 3}]\n\n[{"a": 4}]\n'
    assert [(item.location, item.row) for item in read_rows(file(content, "a.jsonl"))] == [
        ("a.jsonl line 1", {"a": 1}),
        ("a.jsonl line 2", {"a": None}),
        ("a.jsonl line 2", {"a": 3}),
        ("a.jsonl line 4", {"a": 4}),
    ]
    assert [item.row for item in read_rows(file(b'{"a": NaN}\n', "a.jsonl"))] == [{"a": None}]


@pytest.mark.parametrize("writer", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_arrow_has_the_same_rows(writer: Any) -> None:
    sink, table = io.BytesIO(), pyarrow.Table.from_pylist(ROWS)
    with writer(sink, table.schema) as opened:
        opened.write_table(table, max_chunksize=3)
    assert [item.row for item in read_rows(file(sink.getvalue(), "data-00000-of-00001.arrow"))] == ROWS
    with pytest.raises(Failure, match="cannot be read as Arrow, it is damaged or cut off"):
        list(read_rows(file(sink.getvalue()[:-400], "a.arrow")))


def test_plain_text_comes_in_pieces_that_end_with_a_line() -> None:
    text = "".join(f"Line {number} of the play, “as it is”.\r\n" for number in range(5000))
    pieces = list(read_text(file(text.encode(), "play.txt")))
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert all(piece.endswith("\n") for piece in pieces)
    assert detect_format(file(gzip.compress(text.encode()))) == "text"
    with pytest.raises(Failure, match="is not UTF-8 text after line 0"):
        list(read_text(file(b"caf\xe9", "latin.txt")))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "play.txt"])
def test_a_large_file_is_never_held_in_memory(name: str) -> None:
    row = {"prompt": "p" * 1000, "completion": "c" * 1000}
    number = 20_000

    class Endless(io.RawIOBase):
        """The file, made as it is read: 40 MB."""

        def __init__(self) -> None:
            self.rest = b""
            self.lines = self._lines()

        def _lines(self) -> Iterator[bytes]:
            line = json.dumps(row).encode()
            match name.rsplit(".", 1)[1]:
                case "json":
                    yield b"[" + line
                    yield from (b",\n" + line for _ in range(number - 1))
                    yield b"]"
                case "csv":
                    yield b"prompt,completion\n"
                    yield from (f"{row['prompt']},{row['completion']}\n".encode() for _ in range(number))
                case _:
                    yield from (line.replace(b"{", b"" if name == "play.txt" else b"{") + b"\n" for _ in range(number))

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            assert offset == whence == 0, "read from its beginning"
            self.rest, self.lines = b"", self._lines()
            return 0

        def readinto(self, buffer: Any) -> int:
            while len(self.rest) < len(buffer) and (line := next(self.lines, None)):
                self.rest += line
            piece, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
            buffer[: len(piece)] = piece
            return len(piece)

    def opened() -> Any:
        return io.BufferedReader(Endless())

    data_file = DataFile(name, opened, lambda _: pytest.fail("nothing is to be fetched"))
    tracemalloc.start()
    try:
        count = (
            sum(len(piece) for piece in read_text(data_file))
            if name == "play.txt"
            else sum(1 for _ in read_rows(data_file))
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count >= number
    assert peak < 4_000_000


def test_plain_text_and_rows_are_not_mixed() -> None:
    data_files = [file(b"To be, or not to be\n", "a.txt"), file(JSONL, "b.jsonl")]
    with pytest.raises(
        Failure,
        match=r"a.txt is plain text, but b.jsonl is jsonl: all files of s3://data/all must have the same format",
    ):
        rows.make_reader(data_files, DatasetSource(uri="s3://data/all"), "sft", "s3://data/all")


def numpy_file(save: Callable[..., None]) -> bytes:
    """Return an array as NumPy writes it."""
    sink = io.BytesIO()
    save(sink, numpy.zeros(3))
    return sink.getvalue()


def zip_file(*names: str) -> bytes:
    """Return a zip archive with these files."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return sink.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:66\nsize 146946961\n"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.parquet", POINTER, "a.parquet is a pointer of Git LFS"),
        ("a.txt", POINTER, "run git lfs pull"),
        ("a.parquet", b"<!DOCTYPE html><html>Sign in</html>", "is no parquet file, it begins with '<!DOCTYPE html>"),
        ("a.arrow", b"plain words", "is no Arrow file"),
        ("a.xlsx", b"PK\x03\x04\x14\x00", "is a zip archive or an Excel workbook"),
        ("a.jsonl.bz2", bz2.compress(JSONL), "is packed with bzip2"),
        ("a.jsonl.xz", lzma.compress(JSONL), "is packed with xz"),
        ("a.pkl", pickle.dumps(ROWS), "is a Python pickle"),
        ("a.tar.gz", gzip.compress(b"rows.jsonl".ljust(257, b"\0") + b"ustar" + bytes(250)), "is a tar archive"),
        ("a.jsonl.lz4", b"\x04\x22\x4d\x18\x64\x40" + JSONL, "is packed with lz4"),
        ("a.jsonl", b"\xff\x06\x00\x00sNaPpY" + JSONL, "is packed with Snappy"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
        ("a", b"SQLite format 3\x00", "is an SQLite database"),
        ("a.npy", numpy_file(numpy.save), "is a NumPy array"),
        ("a.npz", numpy_file(numpy.savez), "is a NumPy archive"),
        ("a.docx", zip_file("[Content_Types].xml", "word/document.xml"), "is a Word document: save its text"),
        ("a", zip_file("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook"),
        ("a.pt", zip_file("archive/data.pkl"), "is a PyTorch file"),
        ("a.zip", zip_file("rows.jsonl"), "is a zip archive or an Excel workbook"),
        ("a.txt", b"%PDF-1.7\n", "is a PDF document"),
        ("a.txt", b"{\\rtf1\\ansi Hello}", "is an RTF document"),
    ],
    ids=[
        *("pointer", "pointer to text", "page", "no arrow", "workbook", "bzip2", "xz", "pickle", "tar"),
        *("lz4", "snappy", "7z", "sqlite", "npy", "npz", "docx", "xlsx", "torch", "zip", "pdf", "rtf"),
    ],
)
def test_a_file_that_holds_no_rows_is_named_for_what_it_is(name: str, content: bytes, problem: str) -> None:
    with pytest.raises(Failure, match=re.escape(problem)) as caught:
        detect_format(file(content, name))
    assert caught.value.reason is Reason.DATASET_INVALID


def test_an_array_of_rows_is_no_plain_text_whatever_its_name() -> None:
    assert [item.row for item in read_rows(file(json.dumps(ROWS).encode(), "a.txt"))] == ROWS
    assert detect_format(file(b"[Act I] Enter Hamlet.", "a.txt")) == "text"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"prompt": "a", "completion": "b", "completion": "c"}\n'),
        ("a", b'{"prompt": "a", "completion": "b", "completion": "c"}\n'),
        ("a.json", b'[{"prompt": "a", "meta": {"completion": 1, "completion": 2}}]'),
    ],
)
def test_of_a_key_that_comes_twice_no_value_is_silently_kept(name: str, content: bytes) -> None:
    (row,) = read_rows(file(content, name))
    assert "an object has the key 'completion' twice" in row.problem


def test_of_two_columns_of_the_same_name_none_is_silently_kept() -> None:
    sink = io.BytesIO()
    columns = pyarrow.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "completion"])
    pyarrow.parquet.write_table(columns, sink)
    with pytest.raises(Failure, match="two columns of the same name in its schema: prompt, completion, completion"):
        list(read_rows(file(sink.getvalue(), "a.parquet")))


def test_a_value_that_python_cannot_hold_is_no_crash() -> None:
    sink = io.BytesIO()
    late = pyarrow.array([400_000 * 86_400 * 365], pyarrow.timestamp("s"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "seen": late}), sink)
    with pytest.raises(Failure, match="has a value that Python cannot hold"):
        list(read_rows(file(sink.getvalue(), "a.parquet")))
