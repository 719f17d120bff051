"""Read files as rows; detect their format, check them, and give columns the usual names, as the preflight does."""

import gzip
import io
import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import yaml
import zstandard

from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob import FineTuneJobSpec, Objective
from finetune_api.reasons import Reason
from finetune_trainer.data import rows
from finetune_trainer.data.files import detect_format, read_rows, read_text
from finetune_trainer.data.sources import DataFile
from finetune_trainer.runtime.failures import Failure

pytestmark = pytest.mark.unit

ROWS = [
    {"prompt": f"Question {number}, “quoted”,\nin two lines?", "completion": f"Answer {number}."} for number in range(7)
]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
Row = dict[str, Any]


def file(content: bytes, name: str = "rows") -> DataFile:
    """A file of the tests' own."""
    return DataFile(name, lambda: io.BytesIO(content), lambda _: pytest.fail("nothing is to be fetched"))


def parquet(table_rows: list[Row]) -> bytes:
    """Rows as a parquet file of several row groups."""
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table_rows), sink, row_group_size=3)
    return sink.getvalue()


def table(delimiter: str) -> bytes:
    """Rows as a table of quoted fields."""
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
    """A zstd frame that does not say its size, as a pipe makes it."""
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
    ("name", "content", "place", "problem"),
    [
        ("a.jsonl", JSONL + b'{"prompt": \n', "a.jsonl line 8", "is not JSON"),
        ("a.jsonl", JSONL + b'["prompt"]\n', "a.jsonl line 8", "is no JSON object: '[\"prompt\"]'"),
        ("a.jsonl", JSONL + b'{"prompt": "\xff"}\n', "a.jsonl line 8", "is not UTF-8 text"),
        ("a.json", b'[{"a": 1},\n{"a": 2}', "a.json line 2", "the array has no end"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', "a.json line 2", "is not JSON"),
        ("a.json", b"[1]", "a.json line 1", "is no JSON object: '1'"),
        ("a.json", b'[{"a": 1}]\n{"a": 2}', "a.json line 2", "comes after the end of an array"),
        ("a.jsonl", JSONL + b'{"a": 1}{"a": 2}\n', "a.jsonl line 8", "is not JSON"),
        ("a.jsonl", JSONL + b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", "a.jsonl line 8", "nested more than"),
        ("a.jsonl", JSONL + b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}\n", "a.jsonl line 8", "nested more than"),
        ("a.json", b'[{"a": 1},\n' + b"[" * 200_000 + b"]" * 200_000 + b"]", "a.json line 2", "nested more than"),
        ("a.csv", b'a,b\n1,2\n1,2,3\n', "a.csv line 3", "has more fields than the 2 columns of the first line"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv line 2", "is no CSV: unexpected end of data"),
    ],
)  # fmt: skip
def test_a_bad_row_is_found_where_it_is(name: str, content: bytes, place: str, problem: str) -> None:
    bad = [item for item in read_rows(file(content, name)) if item.row is None]
    assert [item.location for item in bad] == [place]
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
        ("a.csv", b"a,b\n1,\xff\n", "a.csv is no UTF-8 text after line 0"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, message: str) -> None:
    with pytest.raises(Failure) as caught:
        list(read_rows(file(content, name)))
    assert caught.value.reason is Reason.DATASET_INVALID
    assert message in caught.value.message


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
    with pytest.raises(Failure, match="is no UTF-8 text after line 0"):
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


USER, ANSWER = {"role": "user", "content": "What follows 1?"}, {"role": "assistant", "content": "2."}
WRONG_ANSWER = {"role": "assistant", "content": "7."}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
}

GOOD: dict[str, tuple[Objective, Row, str, Row]] = {
    "text": ("sft", {"text": "a"}, "text", {"text": "a"}),
    "prompt and completion": (
        "sft",
        {"prompt": "a", "completion": "b", "id": 7},
        "promptCompletion",
        {"prompt": "a", "completion": "b"},
    ),
    "prompt and completion as chats": (
        "sft",
        {"prompt": [USER], "completion": [ANSWER]},
        "promptCompletion",
        {"prompt": [USER], "completion": [ANSWER]},
    ),
    "messages": ("sft", {"messages": [USER, ANSWER]}, "messages", {"messages": [USER, ANSWER]}),
    "messages before other columns": (
        "sft",
        {"prompt": "a", "completion": "b", "messages": [USER, ANSWER]},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "messages as JSON": ("sft", {"messages": json.dumps([USER, ANSWER])}, "messages", {"messages": [USER, ANSWER]}),
    "messages with tools": (
        "sft",
        {"messages": [USER, CALL], "tools": TOOLS},
        "messages",
        {"messages": [USER, CALLED], "tools": TOOLS},
    ),
    "tools as JSON": (
        "sft",
        {"messages": [USER, ANSWER], "tools": json.dumps(TOOLS)},
        "messages",
        {"messages": [USER, ANSWER], "tools": TOOLS},
    ),
    "nulls of parquet": (
        "sft",
        {"messages": [USER, ANSWER | {"tool_calls": None}], "tools": None},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "Alpaca": (
        "sft",
        {"instruction": "a", "input": "b", "output": "c"},
        "instruction",
        {"instruction": "a", "input": "b", "output": "c"},
    ),
    "Alpaca without input": (
        "sft",
        {"instruction": "a", "output": "c"},
        "instruction",
        {"instruction": "a", "input": "", "output": "c"},
    ),
    "Dolly": (
        "sft",
        {"instruction": "a", "context": "b", "response": "c", "category": "d"},
        "instruction",
        {"instruction": "a", "input": "b", "output": "c"},
    ),
    "preference": (
        "dpo",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ),
    "preference without a prompt": (
        "orpo",
        {"chosen": "Is it so? Yes.", "rejected": "Is it so? Yellow."},
        "preference",
        {"prompt": "Is it so? ", "chosen": "Yes.", "rejected": "Yellow."},
    ),
    "preference as chats": (
        "dpo",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
    ),
    "preference of whole chats": (
        "dpo",
        {"chosen": [USER, ANSWER], "rejected": [USER, WRONG_ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
    ),
    "preference of whole chats beside their prompt": (
        "dpo",
        {"prompt": USER["content"], "chosen": [USER, ANSWER], "rejected": [USER, WRONG_ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
    ),
    "preference of answers as chats": (
        "dpo",
        {"prompt": USER["content"], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]},
    ),
    "label": (
        "kto",
        {"prompt": "a", "completion": "b", "label": False},
        "promptCompletion",
        {"prompt": "a", "completion": "b", "label": False},
    ),
    "label of a table": (
        "kto",
        {"prompt": "a", "completion": "b", "label": "TRUE"},
        "promptCompletion",
        {"prompt": "a", "completion": "b", "label": True},
    ),
}


def read(stored_rows: list[Row], objective: Objective = "sft", **source: Any) -> tuple[list[Row], rows.Findings, str]:
    """The good rows of a jsonl file, what was found, and what the file was taken as."""
    content = "".join(json.dumps(row) + "\n" for row in stored_rows).encode()
    spec = DatasetSource.model_validate({"uri": "s3://data/rows.jsonl"} | source)
    data_file = file(content, "rows.jsonl")
    reader, findings = rows.make_reader([data_file], spec, objective, spec.uri), rows.Findings()
    return list(reader.read(read_rows(data_file), findings)), findings, reader.layout


@pytest.mark.parametrize("name", GOOD)
def test_the_format_is_told_from_the_first_row_and_rows_get_the_usual_names(name: str) -> None:
    objective, row, layout, expected = GOOD[name]
    good, findings, taken_as = read([row], objective)
    assert (taken_as, findings.shown) == (layout, [])
    assert good == [expected]
    assert read([row], objective, format=layout)[0] == [expected], "said instead of told"


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, {"q": "x", "a": "y"}, {"prompt": "x", "completion": "y"}),
        ({"messages": "chat"}, {"chat": [USER, ANSWER]}, {"messages": [USER, ANSWER]}),
        (
            {"instruction": "task", "input": "about", "output": "done"},
            {"task": "x", "about": "y", "done": "z"},
            {"instruction": "x", "input": "y", "output": "z"},
        ),
        ({"text": "content"}, {"content": "x"}, {"text": "x"}),
    ],
)
def test_columns_of_other_names(columns: Row, row: Row, expected: Row) -> None:
    assert read([row], columns=columns)[0] == [expected]


BAD: dict[str, tuple[Objective, str, Row, str]] = {
    "no column": (
        "sft",
        "promptCompletion",
        {"prompt": "a", "answer": "b"},
        "has no column 'completion'; found columns: prompt, answer",
    ),
    "no text": ("sft", "text", {"text": None}, "column 'text' must be text, found null"),
    "no list": ("sft", "messages", {"messages": "hi"}, "column 'messages' must be a list of messages, found a text"),
    "no role": (
        "sft",
        "messages",
        {"messages": [{"content": "hi"}]},
        "message 1 in column 'messages' must have the texts role and content",
    ),
    "no content": (
        "sft",
        "messages",
        {"messages": [USER, {"role": "assistant"}]},
        "message 2 in column 'messages' must have the texts role and content",
    ),
    "no answer": (
        "sft",
        "messages",
        {"messages": [USER]},
        "has no message of the role assistant to learn from; found roles: user",
    ),
    "tools that are none": (
        "sft",
        "messages",
        {"messages": [USER, ANSWER], "tools": {"a": 1}},
        "column 'tools' must be a list of tools, found an object",
    ),
    "no instruction": ("sft", "instruction", {"output": "a"}, "has no column 'instruction'; found columns: output"),
    "an input that is none": (
        "sft",
        "instruction",
        {"instruction": "a", "input": 1, "output": "b"},
        "column 'input' must be text, found a number",
    ),
    "no rejected": (
        "dpo",
        "preference",
        {"prompt": "a", "chosen": "b"},
        "has no column 'rejected'; found columns: prompt, chosen",
    ),
    "a text and a chat": (
        "dpo",
        "preference",
        {"prompt": "a", "chosen": [USER, ANSWER], "rejected": "c"},
        "column 'rejected' must be a list of messages",
    ),
    "an answer of the user": (
        "dpo",
        "preference",
        {"chosen": [USER, ANSWER], "rejected": [USER, USER]},
        "must end with a message of the role assistant",
    ),
    "no label": (
        "kto",
        "promptCompletion",
        {"prompt": "a", "completion": "b"},
        "has no column 'label'; found columns: prompt, completion",
    ),
    "a label that is none": (
        "kto",
        "promptCompletion",
        {"prompt": "a", "completion": "b", "label": 3},
        "column 'label' must be true or false, found 3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_row_is_said(name: str) -> None:
    objective, layout, row, message = BAD[name]
    good, findings, _ = read([row], objective, format=layout)
    assert good == []
    assert findings.shown[0].startswith("rows.jsonl line 1: ")
    assert message in findings.shown[0]


def test_plain_text_and_rows_are_not_mixed() -> None:
    data_files = [file(b"To be, or not to be\n", "a.txt"), file(JSONL, "b.jsonl")]
    with pytest.raises(
        Failure, match=r"a.txt is plain text, but b.jsonl is jsonl: all files of s3://data/all must be of one kind"
    ):
        rows.make_reader(data_files, DatasetSource(uri="s3://data/all"), "sft", "s3://data/all")


def test_five_bad_rows_are_shown_and_all_are_counted() -> None:
    _, findings, layout = read([{"text": "a"}, *({"text": number} for number in range(7)), {"text": " "}])
    with pytest.raises(Failure) as caught:
        rows.refuse_bad_rows(findings, "text", "s3://data/rows.jsonl")
    assert (findings.rows, findings.bad, findings.empty, layout) == (9, 7, 1, "text")
    assert caught.value.message.startswith(
        "7 of 9 rows of s3://data/rows.jsonl cannot be used: rows.jsonl line 2: column 'text'"
    )
    assert "line 6: " in caught.value.message
    assert "line 7: " not in caught.value.message
    assert "; 2 more." in caught.value.message


@pytest.mark.parametrize(
    ("objective", "row"),
    [
        ("sft", {"text": " \n"}),
        ("sft", {"prompt": "a", "completion": " "}),
        ("sft", {"messages": [USER, {"role": "assistant", "content": ""}]}),
        ("sft", {"instruction": "a", "output": ""}),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": "b"}),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": " "}),
    ],
)
def test_rows_of_which_nothing_can_be_learned_are_counted(objective: Objective, row: Row) -> None:
    good, findings, _ = read([row], objective)
    assert (good, findings.bad, findings.empty) == ([], 0, 1)


@pytest.mark.parametrize(
    ("objective", "row", "message"),
    [
        ("dpo", {"text": "a"}, "objective dpo learns from a better and a worse answer"),
        ("orpo", {"prompt": "a", "completion": "b"}, "objective orpo learns from a better and a worse answer"),
        ("reward", {"messages": [USER, ANSWER]}, "objective reward learns from a better and a worse answer"),
        ("kto", {"text": "a"}, "objective kto learns from prompts, completions and a label"),
        ("sft", {"chosen": "a", "rejected": "b"}, "set spec.objective to dpo, orpo or reward"),
        (
            "sft",
            {"question": "a"},
            "rows.jsonl line 1 of s3://data/rows.jsonl has the columns question; expected messages",
        ),
    ],
)
def test_data_of_which_the_objective_makes_nothing(objective: Objective, row: Row, message: str) -> None:
    with pytest.raises(Failure) as caught:
        read([row], objective)
    assert caught.value.reason is Reason.DATASET_INVALID
    assert message in caught.value.message


def test_a_template_makes_a_text_or_a_pair_of_a_row() -> None:
    row = {"question": "Why?", "answers": ["Because.", "So."], "meta": {"topic": "things"}}
    text = "{{ meta.topic | upper }}: {{ question }}\n{% for one in answers %}- {{ one }}\n{% endfor %}"
    assert read([row], template={"text": text})[0] == [{"text": "THINGS: Why?\n- Because.\n- So.\n"}]
    pair = {"prompt": "{{ question }}\n", "completion": "{{ answers[0] }}"}
    assert read([row], template=pair)[0] == [{"prompt": "Why?\n", "completion": "Because."}]
    assert read([row | {"good": True}], "kto", template=pair, columns={"label": "good"})[0] == [
        {"prompt": "Why?\n", "completion": "Because.", "label": True}
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ answer }}",
            "rows.jsonl line 1: template.text needs what the row lacks: 'answer' is undefined; found columns: question",
        ),
        ("{{ question.length }}", "'str object' has no attribute 'length'"),
        ("{{ question / 2 }}", "template.text fails: TypeError"),
        ("{{ ''.__class__.__mro__ }}", "template.text does what a template may not"),
        ("{{ question.__init__.__globals__ }}", "template.text does what a template may not"),
    ],
)
def test_a_template_that_fails_names_row_and_variable(template: str, message: str) -> None:
    good, findings, _ = read([{"question": "Why?"}], template={"text": template})
    assert good == []
    assert message in findings.shown[0]


@pytest.mark.parametrize("line", ["{% for %}", "{{ ['a', 'b'] | random }}"], ids=["broken", "other texts each time"])
def test_a_template_that_is_none_is_the_specs_fault(line: str) -> None:
    with pytest.raises(Failure) as caught:
        read([{"a": "b"}], template={"text": f"one line\n{line}"})
    assert (caught.value.reason, caught.value.field) == (Reason.SPEC_INVALID, "spec.dataset.template.text")
    assert "(line 2)" in caught.value.message


PAGE = re.findall(r"```(jsonl|yaml)\n(.*?)```", Path("docs/datasets.md").read_text(), re.DOTALL)


def test_the_examples_of_the_page_are_true() -> None:
    checked, content = 0, ""
    for kind, text in PAGE:
        if kind == "jsonl":
            content = text
            continue
        spec = FineTuneJobSpec.model_validate(
            {"model": {"uri": "hf://acme/model"}, "output": {"s3": {"bucket": "adapters"}}} | yaml.safe_load(text)
        )
        if not content:
            continue
        data_file, findings = file(content.encode(), "rows.jsonl"), rows.Findings()
        reader = rows.make_reader([data_file], spec.dataset, spec.objective, spec.dataset.uri)
        assert list(reader.read(read_rows(data_file), findings)), text
        assert findings.shown == [], text
        detected = rows.make_reader(
            [data_file], spec.dataset.model_copy(update={"format": "auto"}), spec.objective, spec.dataset.uri
        )
        assert detected.layout == reader.layout, "auto takes it so too"
        checked, content = checked + 1, ""
    assert checked == 7


@pytest.mark.parametrize(
    ("objective", "row", "question"),
    [
        ("dpo", {"request": "Hi", "chosen": "a", "rejected": "b"}, "which column is the prompt?"),
        ("dpo", {"conversations": [USER], "chosen": [ANSWER], "rejected": [WRONG_ANSWER]}, "no prompt, but a column"),
        ("sft", {"text": "a", "weight": 0.5}, "has weight 0.5, but rows have no weights here"),
        ("sft", {"messages": [USER, ANSWER], "images": ["x.png"]}, "has a column 'images', but only text is learned"),
        ("sft", {"prompt": "a", "completion": "b", "history": [["c", "d"]]}, "format promptCompletion has no place"),
        ("sft", {"text": "a", "system": "Be kind."}, "format text has no place"),
    ],
)
def test_a_column_that_usually_matters_is_asked_about_until_it_is_ignored(
    objective: Objective, row: Row, question: str
) -> None:
    good, findings, _ = read([row], objective)
    assert good == []
    assert question in findings.shown[0]
    left_out = [name for name in row if name not in ("text", "messages", "prompt", "completion", "chosen", "rejected")]
    good, findings, _ = read([row], objective, columns={"ignored": left_out})
    assert findings.shown == []
    assert len(good) == 1
    assert list(findings.unused) == left_out


def test_columns_that_say_nothing_are_reported_only() -> None:
    rows_read: list[Row] = [
        {"text": "a", "weight": 1, "images": [], "system": "", "id": 7},
        {"text": "b", "source": "web"},
    ]
    _, findings, layout = read(rows_read)
    assert findings.shown == []
    described = rows.describe_layout(layout, findings.used, findings.unused)
    assert described == "text (columns text; not used: weight, images, system, id, source)"


def test_the_first_column_of_usual_names_is_taken() -> None:
    share = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    good, _, layout = read([{"conversations": share, "id": "x"}])
    assert layout == "messages"
    assert good[0]["messages"][1] == {"role": "assistant", "content": "Hello"}
    good, findings, layout = read([{"conversation": "Hi. Hello.", "text": "a"}])
    assert (layout, good, list(findings.unused)) == ("text", [{"text": "a"}], ["conversation"])
    pair = {"system": "Be kind.", "question": "Hi", "chosen": "Hello", "rejected": "No"}
    good, findings, _ = read([pair], "dpo")
    assert [turn["role"] for turn in good[0]["prompt"]] == ["system", "user"]
    assert list(findings.unused) == []
