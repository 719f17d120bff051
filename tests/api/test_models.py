"""The models refuse what the API server refuses, with the path of the field."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import Model
from finetune_api.crd import models_of
from finetune_api.finetunejob import FineTuneJob, FineTuneJobSpec
from finetune_api.finetunejob.editable import EDITABLE, immutability_rules
from finetune_api.messages import Problem
from finetune_api.validation import problems
from tests.api.case import Case
from tests.api.cases import CASES, every_case
from tests.api.objects import ADAPTER_DEPLOYMENT, FINETUNE_JOB, Object, changed

SPECS: dict[str, type[Model]] = {"FineTuneJob": FineTuneJobSpec, "AdapterDeployment": AdapterDeploymentSpec}


def found(item: Object) -> list[Problem]:
    """Return the problems that the model of the object's kind finds in its spec."""
    try:
        SPECS[item["kind"]].model_validate(item["spec"])
    except ValidationError as error:
        return problems(error)
    return []


@pytest.mark.parametrize("item", [FINETUNE_JOB, ADAPTER_DEPLOYMENT], ids=lambda item: str(item["kind"]))
def test_a_whole_object_has_no_problem(item: Object) -> None:
    assert found(item) == []


@every_case
def test_a_wrong_object_has_one_problem_with_its_field(case: Case) -> None:
    (problem,) = found(case.wrong)
    assert f"spec.{problem.field}".startswith(case.field)
    assert (case.models or case.server) in problem.message


def test_every_rule_of_the_crds_is_in_the_table() -> None:
    tested = {case.server for case in CASES}
    for spec in SPECS.values():
        for rule in rules(spec):
            if "oldSelf" not in rule["rule"]:
                assert rule["message"] in tested


def rules(model: type[Model]) -> list[dict[str, str]]:
    """Return the rules of a model and of all models that can be part of it."""
    return [rule for part in models_of(model) for rule in part.cel_rules]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "q_proj",
            "'q_proj' is read as a regular expression for full module names, and matches none: "
            "write a list, for example [q_proj]",
        ),
        ("", "write a list, for example [q_proj]"),
        ("(q_proj", "is neither all-linear nor a regular expression (missing )"),
        (["q_proj", ""], "the list contains an empty name"),
    ],
)
def test_target_modules_that_name_nothing(value: object, message: str) -> None:
    (problem,) = found(changed(FINETUNE_JOB, {"spec.method.lora.targetModules": value}))
    assert message in problem.message


def test_every_problem_of_a_file_is_reported_at_once() -> None:
    wrong = changed(FINETUNE_JOB, {"spec.method.lora.rank": 0, "spec.training.seed": -1, "spec.nodes": 2})
    assert {problem.field for problem in found(wrong)} == {"method.lora.rank", "training.seed", "nodes"}


def test_a_wrong_value_is_shown() -> None:
    (problem,) = found(changed(FINETUNE_JOB, {"spec.method.lora.rank": 0}))
    assert "(found 0)" in problem.message


def test_the_place_of_a_list_item_is_in_its_path() -> None:
    (problem,) = found(changed(FINETUNE_JOB, {"spec.podTemplate": {"env": [{"name": "A"}, {"name": "1B"}]}}))
    assert problem.field == "podTemplate.env[1].name"


@pytest.mark.parametrize(
    ("changes", "prefix"),
    [
        ({"metadata.uid": "0123456789abcdef"}, "default/shakespeare/01234567"),
        ({}, "default/shakespeare/local"),
        ({"spec.output.s3.prefix": "team/run-1"}, "team/run-1"),
    ],
    ids=["in a cluster", "in a file", "chosen"],
)
def test_where_a_job_writes_to(changes: Object, prefix: str) -> None:
    assert FineTuneJob.of(changed(FINETUNE_JOB, changes)).prefix == prefix


def test_files_of_the_workstation_are_model_and_data_only_there() -> None:
    item = changed(
        FINETUNE_JOB, {"spec.dataset": {"uri": "file:///data/rows.jsonl", "validation": {"uri": "file://held-out.csv"}}}
    )
    item = changed(item, {"spec.model.uri": "file://models/tiny"})
    assert {problem.field for problem in found(item)} == {"model.uri", "dataset.uri", "dataset.validation.uri"}
    job = FineTuneJob.of(item, workstation=True)
    assert (job.spec.model.uri, job.spec.dataset.uri) == ("file://models/tiny", "file:///data/rows.jsonl")


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"type": "LORAA"}, "PEFT 0.21.2 has no method LORAA: did you mean LORA or"),
        ({"type": "POLY"}, "POLY cannot be trained here, because its rows must name a task: choose another method"),
        ({"type": "LORA", "options": {"rank": 8}}, "LORA has no option 'rank' in PEFT 0.21.2: "),
        ({"type": "BOFT", "options": {"boft_blok_size": 8}}, "did you mean boft_block_size"),
        ({"type": "LORA", "options": {"base_model_name_or_path": "x"}}, "has no option 'base_model_name_or_path'"),
    ],
)
def test_names_that_peft_does_not_have_are_refused_with_those_that_are_near(peft: Object, message: str) -> None:
    (problem,) = found(changed(FINETUNE_JOB, {"spec.method": {"peft": peft}}))
    assert problem.field.startswith("method.peft.")
    assert message in problem.message


def test_every_field_that_is_not_listed_as_editable_is_immutable() -> None:
    class Section(Model):
        kept: int = 1
        deletion_policy: str = "Retain"

    class Spec(Model):
        suspend: bool = False
        output: Section
        new_field: int | None = None

    rules = {rule["fieldPath"]: rule for rule in immutability_rules(Spec)}
    assert rules.keys() == {".output.kept", ".newField"}
    assert "self.output.kept == oldSelf.output.kept" in rules[".output.kept"]["rule"]
    assert rules[".newField"]["message"].startswith("spec.newField is immutable, because")


def test_a_live_job_has_few_editable_fields() -> None:
    pinned = {rule["fieldPath"].split(".")[1] for rule in FineTuneJobSpec.cel_rules if "oldSelf" in rule["rule"]}
    fields = {field.alias or name for name, field in FineTuneJobSpec.model_fields.items()}
    assert fields - pinned == EDITABLE & fields


@pytest.mark.parametrize("file", sorted(Path("examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_valid(file: Path) -> None:
    for item in yaml.safe_load_all(file.read_text()):
        if item["kind"] in SPECS:
            assert found(item) == []
