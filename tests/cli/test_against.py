"""``finetune validate --against``: whether a Deployment's engine can serve the adapters, before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api.objects import ADAPTER_DEPLOYMENT, FINETUNE_JOB, changed
from tests.cli.run import finetune

ROOM = ["--enable-lora", "--max-loras=4"]


def write(
    tmp_path: Path, args: list[str], container: str = "vllm", name: str = "vllm", kind: str = "Deployment"
) -> str:
    """Write a workload, and return its file."""
    engine = {"name": container, "command": ["vllm", "serve", "/models/base"], "args": args}
    value = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [engine]}}},
    }
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump(value))
    return str(path)


def files(job: dict[str, Any] | None = None, **serving: Any) -> str:
    """Return a FineTuneJob and an AdapterDeployment of its adapter, with changed fields."""
    return yaml.safe_dump_all([changed(FINETUNE_JOB, job or {}), changed(ADAPTER_DEPLOYMENT, serving)])


@pytest.mark.parametrize(
    ("job", "args", "text"),
    [
        ({"spec.method.lora.rank": 64}, ROOM, "start vLLM with --max-lora-rank 64, or train with rank 16 or less"),
        ({"spec.method.lora.rankPattern": {"q_proj": 64}}, ROOM, "the adapter's rank is 64"),
        ({"spec.method": {"dora": {"rank": 8}}}, ROOM, "vLLM cannot serve this adapter"),
        ({}, [*ROOM, "--lora-target-modules", "o_proj"], "add the adapter's modules to the argument, or remove it"),
        ({}, [], "starts vLLM without --enable-lora"),
    ],
)
def test_what_the_engine_cannot_serve_is_reported_before_the_training(
    tmp_path: Path, job: dict[str, Any], args: list[str], text: str
) -> None:
    checked = finetune("validate", "-", "--against", write(tmp_path, args), stdin=files(job))
    assert checked.code == 1
    assert "spec.target: " in checked.out
    assert text in checked.out


MERGED = {
    "spec.target.engine": "merged",
    "spec.target.container": "vllm",
    "spec.strategy": {"type": "Rolling"},
}


@pytest.mark.parametrize(
    ("job", "args", "text"),
    [
        ({}, ["$(FINETUNE_PATH_SHAKESPEARE)"], "set its spec.output.mergedModel: true"),
        (
            {"spec.output.mergedModel": True},
            ["--port=8000"],
            "write $(FINETUNE_PATH_SHAKESPEARE), which is the",
        ),
        ({"spec.output.mergedModel": True}, ["--model=$(FINETUNE_PATH_SHAKESPEARE)"], None),
    ],
)
def test_an_engine_without_lora_must_be_started_with_a_merged_model(
    tmp_path: Path, job: dict[str, Any], args: list[str], text: str | None
) -> None:
    checked = finetune("validate", "-", "--against", write(tmp_path, args), stdin=files(job, **MERGED))
    assert checked.code == (0 if text is None else 1), checked.out
    assert text is None or text in checked.out


def test_a_fitting_engine_is_valid_and_what_should_be_known_is_a_warning(tmp_path: Path) -> None:
    deployment = write(tmp_path, ["--enable-lora", "--chat-template", "/chat.jinja"])
    checked = finetune("validate", "-", "--against", deployment, stdin=files())
    assert checked.code == 0
    assert "AdapterDeployment shakespeare: valid" in checked.out
    assert "warning: vLLM has 1 in memory at once" in checked.out
    assert "warning: vLLM formats chats with /chat.jinja" in checked.out
    machine = json.loads(finetune("validate", "-", "-o", "json", "--against", deployment, stdin=files()).out)
    assert [len(item["warnings"]) for item in machine["objects"]] == [0, 2]


@pytest.mark.parametrize(
    ("container", "name", "text"),
    [
        ("engine", "vllm", "spec.target.container: Deployment 'vllm' has no container 'vllm'; it has engine"),
        ("vllm", "web", "spec.target.deploymentRef: "),
    ],
)
def test_another_target_is_reported(tmp_path: Path, container: str, name: str, text: str) -> None:
    checked = finetune("validate", "-", "--against", write(tmp_path, ROOM, container, name), stdin=files())
    assert checked.code == 1
    assert text in checked.out


def test_a_stateful_set_is_checked_in_the_same_way(tmp_path: Path) -> None:
    serving = files(**{"spec.target": {"statefulSetRef": {"name": "vllm"}}})
    fits = write(tmp_path, ROOM, kind="StatefulSet")
    assert finetune("validate", "-", "--against", fits, stdin=serving).code == 0
    without = finetune("validate", "-", "--against", write(tmp_path, [], kind="StatefulSet"), stdin=serving)
    assert (without.code, "of StatefulSet 'vllm' starts vLLM without --enable-lora" in without.out) == (1, True)
    other = finetune("validate", "-", "--against", write(tmp_path, ROOM), stdin=serving)
    assert other.code == 1
    assert "spec.target.statefulSetRef: " in other.out
    assert "--against gives no StatefulSet 'vllm', only Deployment vllm" in other.out


def test_each_pod_that_the_selector_chooses_is_checked(tmp_path: Path) -> None:
    def build_pod(name: str, app: str, *args: str) -> dict[str, Any]:
        engine = {"name": "vllm", "command": ["vllm", "serve", "/models/base"], "args": list(args)}
        meta = {"name": name, "labels": {"app": app}}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [engine]}}

    serving = files(**{"spec.target": {"selector": {"matchLabels": {"app": "llama"}}}})
    path = tmp_path / "pods.yaml"
    path.write_text(yaml.safe_dump_all([build_pod("a", "llama", "--enable-lora"), build_pod("b", "other")]))
    fits = finetune("validate", "-", "--against", str(path), stdin=serving)
    assert fits.code == 0
    assert "warning: vLLM has 1 in memory at once" in fits.out
    path.write_text(yaml.safe_dump_all([build_pod("a", "llama", *ROOM), build_pod("b", "llama")]))
    lacking = finetune("validate", "-", "--against", str(path), stdin=serving)
    assert lacking.code == 1
    assert "of Pod 'b' starts vLLM without --enable-lora" in lacking.out
    assert "of Pod 'a'" not in lacking.out
    path.write_text(yaml.safe_dump_all([build_pod("b", "other")]))
    other = finetune("validate", "-", "--against", str(path), stdin=serving)
    assert other.code == 1
    assert "spec.target.selector: --against gives no Pod with app=llama, only Pod b" in other.out


def test_what_was_not_checked_is_reported(tmp_path: Path) -> None:
    alone = yaml.safe_dump(ADAPTER_DEPLOYMENT)
    checked = finetune("validate", "-", "--against", write(tmp_path, ROOM), stdin=alone)
    assert checked.code == 0
    assert (
        "FineTuneJob 'shakespeare' is not among the files, so only the engine's arguments were checked" in checked.out
    )


def test_files_without_anything_to_check_are_an_error(tmp_path: Path) -> None:
    deployment = write(tmp_path, ROOM)
    refused = finetune("validate", "-", "--against", deployment, stdin=yaml.safe_dump(FINETUNE_JOB))
    assert (refused.code, "the files have none that is valid" in refused.err) == (1, True)
    empty = tmp_path / "empty.yaml"
    empty.write_text(files())
    refused = finetune("validate", "-", "--against", str(empty), stdin=files())
    assert (refused.code, "has no Deployment, StatefulSet or Pod" in refused.err) == (1, True)
