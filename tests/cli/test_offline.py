"""Commands that need no cluster: help, and checking a file."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

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
    for command in ("render", "validate", "run", "estimate", "status", "watch", "logs", "fetch", "compare", "agent"):
        assert f"  {command} " in shown.out


def test_the_version_is_that_of_the_distribution() -> None:
    assert finetune("--version").out == f"finetune {version('finetune-operator')}\n"


def test_the_shell_completes_commands_and_options() -> None:
    def complete(**variables: str) -> str:
        command = [str(Path(sys.executable).parent / "finetune")]
        return subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
        ).stdout

    assert "complete -o default -F" in complete(_FINETUNE_COMPLETE="source_bash")
    environment = {"_FINETUNE_COMPLETE": "complete_bash", "COMP_WORDS": "finetune va", "COMP_CWORD": "1"}
    assert complete(**environment).split() == ["validate"]


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
    }
    assert rendered["spec"]["resources"]["gpusPerNode"] == 1


def test_what_was_rendered_renders_to_itself(tmp_path: Path) -> None:
    once = finetune("render", "-", stdin=yaml.safe_dump_all([FINETUNE_JOB, ADAPTER_DEPLOYMENT])).out
    assert finetune("render", "-", stdin=once).out == once


def test_json_is_for_scripts() -> None:
    rendered = json.loads(finetune("render", "-", "--output", "json", stdin=yaml.safe_dump(ADAPTER_DEPLOYMENT)).out)
    assert rendered["spec"]["target"]["engine"] == "vllm"


def test_what_is_wrong_is_named_with_file_line_and_field() -> None:
    refused = finetune("render", "-", stdin=yaml.safe_dump(changed(FINETUNE_JOB, {"spec.training.seed": -1})))
    assert refused.code == 1
    assert refused.out == ""
    assert refused.err == "error: -:21: spec.training.seed: found -1: must be at least 0\n"


def test_problems_of_every_document_are_reported_at_once() -> None:
    rank = changed(FINETUNE_JOB, {"spec.method.lora.rank": 0})
    port = changed(ADAPTER_DEPLOYMENT, {"spec.target.port": 0})
    errors = finetune("render", "-", stdin=yaml.safe_dump_all([rank, FINETUNE_JOB, port])).err
    assert "-:11: spec.method.lora.rank: " in errors
    assert "-:56: spec.target.port: " in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "-:1: has no object in it"),
        ("a: [", "-:1: a bracket is not closed"),
        ("- a", "-:1: is not a Kubernetes object: found a list"),
        (yaml.safe_dump(changed(FINETUNE_JOB, {"metadata": {}})), "metadata.name: is missing: give the object a name"),
    ],
)
def test_what_is_no_object_of_ours_is_refused(text: str, message: str) -> None:
    refused = finetune("render", "-", stdin=text)
    assert refused.code == 1
    assert message in refused.err


def test_objects_of_other_kinds_are_printed_as_they_are() -> None:
    pod = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "1"}}
    assert yaml.safe_load(finetune("render", "-", stdin=yaml.safe_dump(pod)).out) == pod


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
