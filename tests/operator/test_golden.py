"""FineTuneJob + observed → objects + status, as YAML files that a reviewer can read.

``UPDATE_GOLDEN=1 pytest tests/operator/test_golden.py`` writes them anew.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_operator.reconcile.finetunejob.plan import make_plan
from tests.operator.fake_cluster import SETTINGS, FakeCluster, running, terminated
from tools.testing.operator_messages import PREFLIGHT_PASSED, PROGRESS, SPEC, SUCCEEDED

GOLDEN = Path(__file__).parent / "golden"
FULL_SPEC: dict[str, Any] = {
    **SPEC,
    "model": {
        "uri": "pvc://models/smollm",
        "secretRef": {"name": "hub"},
        "adapter": {"uri": "s3://adapters/first", "secretRef": {"name": "adapters"}},
    },
    "dataset": {
        "uri": "s3://texts/train.jsonl",
        "secretRef": {"name": "data"},
        "validation": {"uri": "configmap://held-out/rows.jsonl"},
    },
    "output": {
        "s3": {"bucket": "adapters"},
        "secretRef": {"name": "s3-credentials"},
        "hub": {"repo": "org/adapter", "secretRef": {"name": "publish"}},
    },
    "evaluation": {"forgetting": {"uri": "configmap://general/text.txt"}},
    "tracking": {
        "mlflow": {"uri": "https://mlflow.example.com", "secretRef": {"name": "mlflow"}},
        "wandb": {"project": "support", "secretRef": {"name": "wandb"}},
    },
    "resources": {"requests": {"cpu": 4, "memory": "16Gi"}, "limits": {"memory": "16Gi"}},
    "podTemplate": {
        "image": "my/trainer:2",
        "labels": {"team": "nlp", "finetune-operator.io/role": "ignored"},
        "annotations": {"note": "x"},
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "batch",
        "imagePullSecrets": [{"name": "pull"}],
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
        "terminationGracePeriodSeconds": 300,
    },
}


def accepted(spec: dict[str, Any] | None = None) -> FakeCluster:
    return FakeCluster(spec)


def preflight_passed(spec: dict[str, Any] | None = None) -> FakeCluster:
    cluster = FakeCluster(spec)
    cluster.settle()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED))
    return cluster


def preflight_passed_two_gpus() -> FakeCluster:
    return preflight_passed({**SPEC, "resources": {"gpusPerNode": 2}})


def preflight_failed() -> FakeCluster:
    cluster = FakeCluster()
    cluster.settle()
    problem = {
        "reason": "BucketNotFound",
        "field": "spec.output.s3.bucket",
        "message": "there is no bucket adapters: create it",
    }
    cluster.set_pod(terminated(17, {"kind": "PreflightResult", "problems": [problem]}))
    return cluster


def training() -> FakeCluster:
    cluster = preflight_passed()
    cluster.settle()
    cluster.set_pod(running())
    return cluster


def succeeded() -> FakeCluster:
    cluster = training()
    cluster.settle()
    cluster.set_pod(terminated(0, SUCCEEDED))
    return cluster


def merging() -> FakeCluster:
    cluster = preflight_passed({**FULL_SPEC, "output": {**FULL_SPEC["output"], "mergedModel": True}})
    cluster.settle()
    cluster.set_pod(terminated(0, SUCCEEDED))
    cluster.apply(cluster.plan())
    return cluster


def failed_once() -> FakeCluster:
    cluster = training()
    cluster.settle()
    cluster.set_pod(
        terminated(
            30,
            {"kind": "TrainerResult", "reason": "UploadFailed", "message": "S3 did not answer", "progress": PROGRESS},
        )
    )
    return cluster


def preempted() -> FakeCluster:
    cluster = training()
    cluster.settle()
    cluster.set_pod(
        terminated(40, {"kind": "TrainerResult", "reason": "Preempted", "message": "asked to stop"}, deleted=True)
    )
    return cluster


def gate_failed() -> FakeCluster:
    cluster = training()
    cluster.settle()
    evaluation = {**SUCCEEDED["evaluation"], "basePerplexity": 49.4, "perplexity": 36.6, "passed": False}
    result = {
        "kind": "TrainerResult",
        "reason": "GateFailed",
        "message": "spec.evaluation.gate: the held-out loss is 3.6, wanted at most 3: the adapter is not published; "
        "it is kept with its report in s3://adapters/ns/a/11111111/rejected",
        "progress": PROGRESS,
        "evaluation": evaluation,
        "report": {"uri": "s3://adapters/ns/a/11111111/rejected/report.html"},
    }
    cluster.set_pod(terminated(34, result))
    return cluster


def out_of_memory() -> FakeCluster:
    cluster = training()
    cluster.settle()
    cluster.set_pod(terminated(31, {"kind": "TrainerResult", "reason": "OutOfMemory", "message": "CUDA out of memory"}))
    return cluster


def invalid() -> FakeCluster:
    return FakeCluster({**SPEC, "training": {"epochs": 1, "maxSteps": 10}, "method": {"lora": {"rank": 0}}})


SCENARIOS: dict[str, Callable[[], FakeCluster]] = {
    "accepted": accepted,
    "accepted-full-spec": lambda: accepted(FULL_SPEC),
    "preflight-passed": preflight_passed,
    "preflight-passed-full-spec": lambda: preflight_passed(FULL_SPEC),
    "preflight-passed-two-gpus": preflight_passed_two_gpus,
    "preflight-failed": preflight_failed,
    "training": training,
    "succeeded": succeeded,
    "merging": merging,
    "failed-once": failed_once,
    "preempted": preempted,
    "gate-failed": gate_failed,
    "out-of-memory": out_of_memory,
    "invalid-spec": invalid,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_golden(name: str) -> None:
    cluster = SCENARIOS[name]()
    decided = make_plan(cluster.observed(), cluster.now, SETTINGS)
    output = {
        "create": decided.create,
        "delete": [job["metadata"]["name"] for job in decided.delete],
        "status": decided.status,
        "events": [f"{event.type} {event.reason}: {event.note}" for event in decided.events],
        "requeueAfter": decided.requeue_after,
    }
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(yaml.safe_dump(output, sort_keys=False, width=160, allow_unicode=True))
    assert output == yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_golden_status_has_only_fields_of_the_model(file: Path) -> None:
    FineTuneJobStatus.model_validate(yaml.safe_load(file.read_text())["status"])


def test_every_golden_file_has_a_scenario() -> None:
    assert sorted(file.stem for file in GOLDEN.glob("*.yaml")) == sorted(SCENARIOS)
