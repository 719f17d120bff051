"""What is no plain text is not learned as plain text, whatever its name; and prose is, whatever it begins with."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from finetune_api.finetunejob import FineTuneJob
from finetune_api.reasons import Reason
from finetune_trainer.data import rows, sources
from finetune_trainer.data.files import detect_format, read_rows
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings
from tests.trainer.stored_rows import file

pytestmark = pytest.mark.unit
NAMES = ["data", "data.txt", "data.md"]
BROKEN_JSON = {
    "a lost comma": b'{"prompt":"a" "completion":"c"}\n{"prompt": "q", "completion": "a"}\n',
    "a comma after each": b'{"prompt":"q","completion":"a"},\n{"prompt":"q","completion":"a"},\n',
    "a lost quote in an array": b'[\n{"prompt":"q,"completion":"a"}]\n',
    "keys without quotes": b'{prompt: "q", completion: "a"}\n',
    "an array of lists": b'[["q", "a"], ["q", "a"]]\n',
    "an array of texts": b'["q", "a"]\n',
}
OTHER_NOTATION = {
    "Python": (b"{'prompt': 'q', 'completion': 'a'}\n", "has rows in Python's notation"),
    "a list in Python": (b"[{'prompt': 'q', 'completion': None}]\n", "has rows in Python's notation"),
    "HTML": (b"<!DOCTYPE html><html><body>Please log in</body></html>", "is an HTML page"),
    "HTML after comments": (b"<!-- saved -->" * 40 + b"\n<HTML lang='en'>", "is an HTML page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML document"),
    "an error of S3": (b"<Error><Code>NoSuchKey</Code></Error>", "is an XML document"),
    "YAML": (b"- prompt: q\n  completion: a\n", "is YAML ('- prompt: q')"),
    "CSV": (b"prompt,completion\nq,a\n", "begins like a table ('prompt,completion')"),
    "CSV of Excel": (b"\xef\xbb\xbfinstruction;output;source\r\nq;a;s\r\n", "begins like a table"),
    "TSV": (b"\tprompt\tcompletion\n0\tq\ta\n", "begins like a table"),
}
PROSE = [
    b"[1] A story about things.\n",
    b"[Act I] Enter Hamlet.\n",
    b"[2024, 2025] were dry years.\n",
    b"[[Loom]] is a machine that weaves.\n",
    b"[INST] Weave. [/INST] It is woven.\n",
    b"{Chorus} Weave, weave.\n",
    b"{{ bos_token }}{% for message in messages %}\n",
    b"{'tis the season} to weave.\n",
    b"<|im_start|>user\nWeave.<|im_end|>\n",
    b"<s>Weave.</s>\n",
    b"<think>Weaving</think> It is woven.\n",
    b"<start_of_turn>user\n",
    b"<!-- A comment. -->\n# Looms\n",
    b"---\ntitle: Looms\n---\n# Looms\n",
    b"- The loom: a machine.\n- note: it weaves.\n",
    b"# Looms\n\n| name | text |\n",
    b"Looms, text and context, in one book.\n",
    b"text\nOnce upon a time there was a loom.\n",
    b'"Weave," she said.\n',
    b"(The loom clatters.)\n",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=list(BROKEN_JSON))
def test_json_with_an_error_is_reported_by_its_line(name: str, content: bytes) -> None:
    first = next(read_rows(file(content, name)))
    assert re.fullmatch(rf"{name} line [12]", first.location)
    assert first.problem.startswith("is not ")
    assert first.problem.endswith("(if it is plain text all the same, set spec.dataset.format to text)")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("content", "problem"), OTHER_NOTATION.values(), ids=list(OTHER_NOTATION))
def test_rows_and_documents_in_another_notation_are_refused(name: str, content: bytes, problem: str) -> None:
    with pytest.raises(Failure, match=re.escape(f"{name} {problem}")) as caught:
        detect_format(file(content, name))
    assert caught.value.reason is Reason.DATASET_INVALID
    assert "if it is plain text all the same, set spec.dataset.format to text" in caught.value.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [*BROKEN_JSON.values(), *(content for content, _ in OTHER_NOTATION.values())])
def test_everything_is_plain_text_if_the_user_says_so(name: str, content: bytes) -> None:
    assert detect_format(dataclasses.replace(file(content, name), plain_text=True)) == "text"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", PROSE)
def test_prose_is_plain_text_whatever_it_begins_with(name: str, content: bytes) -> None:
    assert detect_format(file(content, name)) == "text"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv.gz"])
def test_a_page_under_the_name_of_rows_is_refused(name: str) -> None:
    page = dataclasses.replace(file(b"<!DOCTYPE html><html>Sign in</html>", name), plain_text=True)
    with pytest.raises(Failure, match=r"is an HTML page, perhaps one that asks to sign in: get the data again$"):
        detect_format(page)


def test_plain_text_among_rows_is_one_bad_row() -> None:
    (row,) = read_rows(file(b"\nSome notes\nand more\n", "notes.txt"))
    assert (row.location, row.problem) == (
        "notes.txt line 1",
        "is plain text, but other files of the dataset have rows: leave this file out",
    )
    assert list(read_rows(file(b"\n", "notes.txt"))) == []


def settings(tmp_path: Path, **dataset: str) -> Settings:
    job = {
        "metadata": {"namespace": "team", "name": "job", "uid": "0a1b2c3d-0000-4000-8000-000000000000"},
        "spec": {
            "model": {"uri": "hf://acme/tiny"},
            "dataset": {"uri": f"file://{tmp_path}"} | dataset,
            "method": {"lora": {"rank": 4}},
            "output": {"s3": {"bucket": "models"}, "secretRef": {"name": "s3"}},
        },
    }
    return Settings(
        job=FineTuneJob.of(job, workstation=True),
        mounts=tmp_path / "mounts",
        scratch=tmp_path / "scratch",
        termination_log=tmp_path / "log",
    )


@pytest.mark.parametrize(("stated", "layout"), [("auto", None), ("text", "plain text")])
def test_the_format_of_the_spec_reaches_the_files_of_preflight_and_training(
    tmp_path: Path, stated: str, layout: str | None
) -> None:
    (tmp_path / "page.txt").write_text("<html>Looms</html>")
    job = settings(tmp_path, format=stated)
    split, _ = sources.find_splits(job.job.spec.dataset)
    listed = sources.list_files(job, split, 1)
    downloaded = sources.list_local_files(sources.download(job, split, tmp_path / "scratch", 1))
    for data_files in (listed, downloaded):
        if layout is None:
            with pytest.raises(Failure, match="is an HTML page"):
                rows.make_reader(data_files, job.job.spec.dataset, "sft", "rows")
        else:
            assert rows.make_reader(data_files, job.job.spec.dataset, "sft", "rows").layout == layout


def test_a_row_is_named_by_its_path_in_the_dataset(tmp_path: Path) -> None:
    for directory in ("a", "b"):
        (tmp_path / "rows" / directory).mkdir(parents=True)
        (tmp_path / "rows" / directory / "part.jsonl").write_text(json.dumps({"text": directory}))
    job = settings(tmp_path, uri=f"file://{tmp_path / 'rows'}")
    split, _ = sources.find_splits(job.job.spec.dataset)
    downloaded = sources.download(job, split, tmp_path / "scratch", 1)
    for data_files in (sources.list_files(job, split, 1), sources.list_local_files(downloaded)):
        assert [next(read_rows(data_file)).location for data_file in data_files] == [
            "a/part.jsonl line 1",
            "b/part.jsonl line 1",
        ]
    assert [path.name for path in downloaded.files] == ["part.jsonl"] * 2  # part of the dataset's digests
