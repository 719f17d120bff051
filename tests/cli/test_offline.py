"""Commands that need no cluster: help, and checking a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.api.cases import CASES, Case
from tests.api.objects import ADAPTER_DEPLOYMENT, FINETUNE_JOB, changed
from tests.cli.run import finetune

HEAVY = ("pydantic", "kubernetes", "boto3", "httpx", "yaml", "finetune_api.finetunejob")


def test_help_waits_for_nothing_heavy() -> None:
    code = f"import sys, finetune_cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_help_names_every_command() -> None:
    shown = finetune("--help")
    assert shown.code == 0
    for command in ("render", "run", "estimate", "status", "watch", "logs", "fetch", "compare"):
        assert f"  {command} " in shown.out


def test_a_file_is_printed_with_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(FINETUNE_JOB))
    rendered = yaml.safe_load(finetune("render", str(file)).out)
    assert rendered["metadata"] == FINETUNE_JOB["metadata"]
    assert rendered["spec"]["method"]["lora"] == {
        "rank": 8,
        "alpha": 32,
        "dropout": 0,
        "useRslora": False,
        "targetModules": ["q_proj"],
        "bias": "none",
        "init": "default",
        "modulesToSave": [],
        "rankPattern": {},
        "alphaPattern": {},
    }
    assert rendered["spec"]["resources"]["gpusPerNode"] == 1


def test_what_was_rendered_renders_to_itself(tmp_path: Path) -> None:
    once = finetune("render", "-", stdin=yaml.safe_dump_all([FINETUNE_JOB, ADAPTER_DEPLOYMENT])).out
    assert finetune("render", "-", stdin=once).out == once


def test_json_is_for_scripts() -> None:
    rendered = json.loads(finetune("render", "-", "--output", "json", stdin=yaml.safe_dump(ADAPTER_DEPLOYMENT)).out)
    assert rendered["spec"]["target"]["port"] == 8000


@pytest.mark.parametrize("case", CASES[:4] + CASES[-3:], ids=lambda case: str(case.name))
def test_what_is_wrong_is_named_with_its_field(case: Case) -> None:
    refused = finetune("render", "-", stdin=yaml.safe_dump(case.wrong))
    assert refused.code == 1
    assert refused.out == ""
    assert f"error: -: {case.field}" in refused.err
    assert (case.models or case.server) in refused.err


def test_problems_of_every_document_are_told_at_once() -> None:
    rank = changed(FINETUNE_JOB, {"spec.method.lora.rank": 0})
    port = changed(ADAPTER_DEPLOYMENT, {"spec.target.port": 0})
    told = finetune("render", "-", stdin=yaml.safe_dump_all([rank, FINETUNE_JOB, port])).err
    assert "-, document 1: spec.method.lora.rank: " in told
    assert "-, document 3: spec.target.port: " in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "- has no object in it"),
        ("a: [", "- is not YAML"),
        ("- a", "is not a Kubernetes object: found list"),
        (
            "kind: Pod\napiVersion: v1",
            "found 'v1', 'Pod': write finetune-operator.io/v1alpha1 and FineTuneJob or AdapterDeployment",
        ),
        (yaml.safe_dump(changed(FINETUNE_JOB, {"metadata": {}})), "metadata.name: is missing: give the object a name"),
        (yaml.safe_dump(changed(FINETUNE_JOB, {"specs": {}})), "specs: unknown field: remove it"),
    ],
)
def test_what_is_no_object_of_ours_is_refused(text: str, message: str) -> None:
    refused = finetune("render", "-", stdin=text)
    assert refused.code == 1
    assert message in refused.err


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused = finetune("render", str(tmp_path / "none.yaml"))
    assert refused.code == 1
    assert "No such file" in refused.err


def test_without_a_cluster_it_says_what_to_set(tmp_path: Path) -> None:
    refused = finetune("status", environment={"KUBECONFIG": str(tmp_path / "none")})
    assert refused.code == 1
    assert "Set KUBECONFIG" in refused.err


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "a", "user": {}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    refused = finetune("status", environment={"KUBECONFIG": str(tmp_path / "config")})
    assert refused.code == 1
    assert "cannot reach the API server at http://127.0.0.1:9" in refused.err
