"""FineTuneJob + observed → objects + status, as YAML files that a reviewer can read.

``UPDATE_GOLDEN=1 pytest tests/operator/test_golden.py`` writes them anew.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.reconcile.finetunejob_plan import plan
from tests.operator.worlds import PREFLIGHT_PASSED, PROGRESS, SETTINGS, SPEC, SUCCEEDED, World, running, terminated

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


def accepted(spec: dict[str, Any] | None = None) -> World:
    return World(spec)


def preflight_passed(spec: dict[str, Any] | None = None) -> World:
    world = World(spec)
    world.settle()
    world.set_pod(terminated(0, PREFLIGHT_PASSED))
    return world


def preflight_passed_two_gpus() -> World:
    return preflight_passed({**SPEC, "resources": {"gpusPerNode": 2}})


def preflight_failed() -> World:
    world = World()
    world.settle()
    problem = {
        "reason": "BucketNotFound",
        "field": "spec.output.s3.bucket",
        "message": "there is no bucket adapters: create it",
    }
    world.set_pod(terminated(17, {"kind": "PreflightResult", "problems": [problem]}))
    return world


def training() -> World:
    world = preflight_passed()
    world.settle()
    world.set_pod(running())
    return world


def succeeded() -> World:
    world = training()
    world.settle()
    world.set_pod(terminated(0, SUCCEEDED))
    return world


def failed_once() -> World:
    world = training()
    world.settle()
    world.set_pod(
        terminated(
            30,
            {"kind": "TrainerResult", "reason": "UploadFailed", "message": "S3 did not answer", "progress": PROGRESS},
        )
    )
    return world


def preempted() -> World:
    world = training()
    world.settle()
    world.set_pod(
        terminated(40, {"kind": "TrainerResult", "reason": "Preempted", "message": "asked to stop"}, deleted=True)
    )
    return world


def gate_failed() -> World:
    world = training()
    world.settle()
    evaluation = {**SUCCEEDED["evaluation"], "basePerplexity": 49.4, "perplexity": 36.6, "passed": False}
    result = {
        "kind": "TrainerResult",
        "reason": "GateFailed",
        "message": "spec.evaluation.gate: the held-out loss is 3.6, wanted at most 3: the adapter is not published, but kept with its report in "
        "s3://adapters/ns/a/11111111/rejected",
        "progress": PROGRESS,
        "evaluation": evaluation,
        "report": {"uri": "s3://adapters/ns/a/11111111/rejected/report.html"},
    }
    world.set_pod(terminated(34, result))
    return world


def out_of_memory() -> World:
    world = training()
    world.settle()
    world.set_pod(terminated(31, {"kind": "TrainerResult", "reason": "OutOfMemory", "message": "CUDA out of memory"}))
    return world


def invalid() -> World:
    return World({**SPEC, "training": {"epochs": 1, "maxSteps": 10}, "method": {"lora": {"rank": 0}}})


SCENARIOS: dict[str, Callable[[], World]] = {
    "accepted": accepted,
    "accepted-full-spec": lambda: accepted(FULL_SPEC),
    "preflight-passed": preflight_passed,
    "preflight-passed-full-spec": lambda: preflight_passed(FULL_SPEC),
    "preflight-passed-two-gpus": preflight_passed_two_gpus,
    "preflight-failed": preflight_failed,
    "training": training,
    "succeeded": succeeded,
    "failed-once": failed_once,
    "preempted": preempted,
    "gate-failed": gate_failed,
    "out-of-memory": out_of_memory,
    "invalid-spec": invalid,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_golden(name: str) -> None:
    world = SCENARIOS[name]()
    decided = plan(world.observed(), world.now, SETTINGS)
    shown = {
        "create": decided.create,
        "delete": [job["metadata"]["name"] for job in decided.delete],
        "status": decided.status,
        "events": [f"{note.type} {note.reason}: {note.text}" for note in decided.notes],
        "requeueAfter": decided.requeue_after,
    }
    text = yaml.safe_dump(shown, sort_keys=False, width=160, allow_unicode=True)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_every_golden_file_has_a_scenario() -> None:
    assert sorted(file.stem for file in GOLDEN.glob("*.yaml")) == sorted(SCENARIOS)
