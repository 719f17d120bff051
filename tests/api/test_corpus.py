"""What ``finetune validate`` says about each wrong file of the corpus, and that it says nothing about the right ones.

``UPDATE_GOLDEN=1 pytest tests/api/test_corpus.py`` writes messages.txt anew: read the difference as a user would.
"""

import os
from pathlib import Path

import pytest

from finetune_api.offline import SPECS, schema_of
from finetune_api.remedies import has_field
from finetune_api.synonyms import SYNONYMS
from finetune_cli.documents import FileError, check, read_documents
from tests.api.corpus_cases import BAD, GOOD, MESSAGES, CorpusFile


def said(case: CorpusFile, directory: Path) -> list[str]:
    """Return the messages about a file, without its name."""
    file = directory / "file.yaml"
    file.write_bytes(case.content)
    try:
        lines = [line for item in read_documents(str(file)) for line in check(item, str(file)).lines]
    except FileError as error:
        lines = [str(error)]
    return [line.removeprefix(f"{file}:") for line in lines]


def test_there_are_enough_files() -> None:
    assert len(BAD) >= 150
    assert len(GOOD) >= 50
    assert len({case.name for case in (*BAD, *GOOD)}) == len(BAD) + len(GOOD)


def test_each_wrong_file_has_the_message_that_a_person_wants(tmp_path: Path) -> None:
    messages = {case.name: said(case, tmp_path) for case in BAD}
    assert [name for name, lines in messages.items() if not lines] == []
    text = "\n".join(f"# {name}\n" + "".join(f"{line}\n" for line in lines) for name, lines in messages.items())
    if os.environ.get("UPDATE_GOLDEN"):
        MESSAGES.write_text(text)
    assert text == MESSAGES.read_text()


@pytest.mark.parametrize("case", GOOD, ids=[case.name for case in GOOD])
def test_a_right_file_has_no_problem(case: CorpusFile, tmp_path: Path) -> None:
    assert said(case, tmp_path) == []


def test_what_another_tool_calls_otherwise_exists_here() -> None:
    paths = [path.replace("*", "lora") for path in SYNONYMS.values() if " " not in path]
    assert [path for path in paths if not any(has_field(schema_of(kind), path) for kind in SPECS)] == []
