"""Generated files are committed as their source defines them, and describe every field."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.crd import adapterdeployment_crd, finetunejob_crd
from finetune_api.reasons import EXIT_CODES, USER_ERRORS, Reason, reason_of_exit_code
from tools.generate import ROOT, TABLES, find_stale, generate

Schema = dict[str, Any]


def test_every_generated_file_is_as_its_source_says() -> None:
    assert find_stale(generate()) == []


def test_every_file_with_the_marker_is_written_by_make_generate() -> None:
    marked = subprocess.run(
        ["git", "grep", "-lE", "[Gg]enerated (from|by) .*make generate", "--", "*.yaml", "*.json", "docs/reference"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert sorted(marked) == sorted([*generate(), *TABLES])


@pytest.mark.parametrize("crd", [finetunejob_crd(), adapterdeployment_crd()], ids=["FineTuneJob", "AdapterDeployment"])
def test_every_field_has_a_sentence(crd: Schema) -> None:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields = dict(_fields(schema["properties"]["spec"], "spec")) | dict(
        _fields(schema["properties"]["status"], "status")
    )
    assert len(fields) > 30
    silent = [path for path, node in fields.items() if not node.get("description", "").endswith(".")]
    assert silent == []


@pytest.mark.parametrize("crd", [finetunejob_crd(), adapterdeployment_crd()], ids=["FineTuneJob", "AdapterDeployment"])
def test_every_number_of_a_spec_has_a_highest_value(crd: Schema) -> None:
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    numbers = [(path, node) for path, node in _fields(spec, "spec") if node.get("type") in ("integer", "number")]
    assert numbers
    assert [path for path, node in numbers if "maximum" not in node] == []


def _fields(node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from _fields(child, f"{path}.{name}")
    if "properties" in node.get("items", {}):
        yield from _fields(node["items"], f"{path}[]")


def test_exit_codes_tell_reasons_apart() -> None:
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert all(reason_of_exit_code(code) is reason for reason, code in EXIT_CODES.items())


@pytest.mark.parametrize(
    ("code", "reason"), [(143, Reason.PREEMPTED), (2, Reason.TRAINER_ERROR), (255, Reason.TRAINER_ERROR)]
)
def test_an_exit_code_of_another_program_has_a_reason_too(code: int, reason: Reason) -> None:
    assert reason_of_exit_code(code) is reason


def test_what_may_pass_by_itself_is_not_the_users_error() -> None:
    assert not USER_ERRORS & {Reason.PREEMPTED, Reason.UPLOAD_FAILED, Reason.TRAINER_ERROR, Reason.HOST_OUT_OF_MEMORY}
