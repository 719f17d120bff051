"""Files that no schema describes: broken text, odd characters, deep nesting. Each gives a message."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.api.objects import FINETUNE_JOB, changed
from tests.cli.run import COMMAND, finetune

JOB = yaml.safe_dump(FINETUNE_JOB, sort_keys=False)


def validate(directory: Path, content: bytes | str, name: str = "job.yaml") -> str:
    """Return what ``finetune validate`` says about a file, without the file's name."""
    file = directory / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return finetune("validate", str(file)).out.replace(f"{file}:", "")


@pytest.mark.parametrize("kind", ["[FineTuneJob]", "{a: b}", "1"])
def test_a_kind_that_is_no_text(tmp_path: Path, kind: str) -> None:
    assert ": write FineTuneJob" in validate(tmp_path, JOB.replace("kind: FineTuneJob", f"kind: {kind}"))


@pytest.mark.parametrize(
    "content",
    ["a: " + "[" * 330 + "]" * 330, '{"a": ' + "[" * 5000 + "]" * 5000 + "}", '{"a":' * 150 + "1" + "}" * 150],
)
def test_deep_nesting_costs_only_its_own_file(tmp_path: Path, content: str) -> None:
    deep, good = tmp_path / "deep.yaml", tmp_path / "good.yaml"
    deep.write_text(content)
    good.write_text(JOB)
    lines = finetune("validate", str(deep), str(good)).out.splitlines()
    assert lines == [
        f"{deep}:1: the document is nested more than 100 levels deep: check its brackets and indentation",
        f"{good}:1: FineTuneJob shakespeare: valid",
    ]


def test_a_directory_without_files_costs_only_itself(tmp_path: Path) -> None:
    bad, empty = tmp_path / "bad.yaml", tmp_path / "empty"
    bad.write_text("a: [")
    empty.mkdir()
    result = finetune("validate", str(bad), str(empty))
    assert result.code == 1
    assert f"{bad}:1: a bracket is not closed" in result.out
    assert f"{empty}:1: has no file that ends with .yaml, .yml, .json" in result.out


@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        ("<&-", "-:1: cannot be read: standard input is closed"),
        (">/dev/full", "error: cannot write the output: No space"),
        (">&-", "error: standard output is closed"),
    ],
)
def test_standard_streams_that_do_not_work(tmp_path: Path, redirection: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    argument = "-" if redirection == "<&-" else str(file)
    command = f'"$@" validate {argument} {redirection}'
    ran = subprocess.run(["sh", "-c", command, "sh", *COMMAND], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert message in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    assert len((ran.stdout + ran.stderr).splitlines()) == 1


def test_a_reader_that_has_gone_needs_no_message() -> None:
    command = [*COMMAND, "validate", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(JOB.encode())
        process.stdin.close()
        assert process.stderr.read() == b""


def test_a_terminal_that_has_only_ascii() -> None:
    content = JOB.replace("bucket: adapters", "größe: adapters").encode()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([*COMMAND, "validate", "-"], input=content, capture_output=True, env=environment, check=False)
    assert ran.returncode == 1
    assert rb"spec.output.s3.gr\xf6\xdfe: unknown field" in ran.stdout
    assert ran.stderr == b""


@pytest.mark.parametrize("tab", ["\t", "\t# a comment", " \t \t"])
def test_a_tab_at_the_end_of_a_line_is_a_space(tmp_path: Path, tab: str) -> None:
    content = JOB.replace("    rank: 8", f"    rank: 8{tab}").replace("  model:", f"  model:{tab}")
    assert content.count(tab) >= 1
    assert validate(tmp_path, content).endswith("FineTuneJob shakespeare: valid\n")


def test_many_tabs_take_no_time(tmp_path: Path) -> None:
    labels = "".join(f"    label{number}: a\t\n" for number in range(60))
    assert validate(tmp_path, JOB.replace("  name: shakespeare\n", f"  name: a\n  labels:\n{labels}")).endswith(
        "valid\n"
    )


def test_a_tab_as_indentation_is_refused(tmp_path: Path) -> None:
    assert "2: the line is indented with a tab" in validate(tmp_path, "a:\n\tb: 1\n")


def test_an_empty_namespace_is_none(tmp_path: Path) -> None:
    assert validate(tmp_path, JOB.replace("namespace: default", 'namespace: ""')).endswith("valid\n")


def test_a_byte_order_mark_before_each_document(tmp_path: Path) -> None:
    said = validate(tmp_path, f"\ufeff{JOB}---\n\ufeff{JOB}")
    assert said.count(": valid") == 2


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_json_has_lines(tmp_path: Path, ending: str) -> None:
    wrong = changed(
        FINETUNE_JOB, {"spec.training.seed": -1, "spec.podTemplate": {"env": [{"name": "A"}, {"nam": "B,[{"}]}}
    )
    text = json.dumps(wrong, indent=2)
    lines = text.splitlines()
    said = validate(tmp_path, text.replace("\n", ending), "job.json")
    numbers = [next(number for number, line in enumerate(lines, 1) if word in line) for word in ("seed", "B,[{")]
    assert f"{numbers[0]}: spec.training.seed: " in said
    assert f"{numbers[1]}: spec.podTemplate.env[1].nam: " in said


def test_json_with_a_field_twice(tmp_path: Path) -> None:
    text = json.dumps(FINETUNE_JOB, indent=2).replace('"rank": 8', '"rank": 8,\n"rank": 9')
    line = text[: text.index('"rank"')].count("\n") + 1
    message = f"{line + 1}: spec.method.lora.rank: is given twice, first in line {line}: remove one\n"
    assert validate(tmp_path, text, "job.json") == message


@pytest.mark.parametrize(("old", "new"), [('"adapters"\n', '"adapters",\n'), ('"q_proj"\n', '"q_proj",\n')])
def test_json_has_no_trailing_comma(tmp_path: Path, old: str, new: str) -> None:
    text = json.dumps(FINETUNE_JOB, indent=2)
    line = text[: text.index(old)].count("\n") + 1
    assert (
        validate(tmp_path, text.replace(old, new), "job.json")
        == f"{line}: JSON has no comma before }} or ]: remove it\n"
    )
    assert "is not JSON: Expecting ',' delimiter" in validate(tmp_path, text.replace('",\n', '"\n', 1), "job.json")
    assert "valid" in validate(tmp_path, text.replace(old, new), "job.yaml")


def test_a_list_whose_items_are_a_mapping(tmp_path: Path) -> None:
    content = f"apiVersion: v1\nkind: List\nitems:\n  a: {json.dumps(FINETUNE_JOB)}\n"
    assert validate(tmp_path, content) == "3: items: must be a list, found a mapping with a: begin each item with -\n"


def test_a_helm_template_must_be_rendered(tmp_path: Path) -> None:
    content = JOB.replace("name: shakespeare", "name: {{ .Release.Name }}-job")
    assert validate(tmp_path, content) == (
        "4: the file is a Helm template: render it first, for example with `helm template`\n"
    )


def test_a_non_breaking_space_is_named(tmp_path: Path) -> None:
    for content in (JOB.replace("    rank: 8", "    rank:\u00a08"), JOB.replace("      rank: 8", "     \u00a0rank: 8")):
        said = validate(tmp_path, content)
        assert "the line has a non-breaking space (U+00A0): write an ordinary space in its place" in said


def test_a_file_in_latin_1_has_the_line_and_the_remedy(tmp_path: Path) -> None:
    content = (JOB + "# größe\n").encode("latin-1")
    line = JOB.count("\n") + 1
    assert validate(tmp_path, content) == f"{line}: found the byte 0xF6, which is not UTF-8: save the file as UTF-8\n"


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    for name in ("job.yaml", "job.json"):
        text = JOB if name == "job.yaml" else json.dumps(FINETUNE_JOB)
        old, new = ("maxSteps: 10", "maxSteps: 1") if name == "job.yaml" else ('"maxSteps": 10', '"maxSteps": 1')
        said = validate(tmp_path, text.replace(old, new + "0" * 5000), name)
        assert "spec.training.maxSteps: " in said
        assert len(said) < 300
