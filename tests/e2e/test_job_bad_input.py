"""The preflight finds what is wrong with a job in the real model and data, before a pod asks for a GPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.conftest import Workshop
from tests.e2e.jobs import ROWS, job, jsonl, refused
from tests.e2e.namespace import Object, condition, gpus
from tests.e2e.objectstore import BUCKET

pytestmark = [pytest.mark.node, pytest.mark.timeout(3000)]


@dataclass(frozen=True)
class Case:
    """A section of the spec that is wrong, and what the user must be told of it."""

    sections: Callable[[Workshop], dict[str, Any]]
    reason: str
    says: tuple[str, ...]


def output(workshop: Workshop, bucket: str, secret: str) -> dict[str, Any]:
    """Return an output section. Model and dataset have credentials of their own, which are right."""
    right = {"name": "s3-credentials"}
    return {
        "output": {"s3": {"bucket": bucket, "endpoint": workshop.store.address}, "secretRef": {"name": secret}},
        "model": {"uri": f"s3://{BUCKET}/models/tiny-llama", "secretRef": right},
        "dataset": {"uri": f"s3://{BUCKET}/data/rows.jsonl", "secretRef": right},
    }


CASES = {
    "no-bucket": Case(
        lambda workshop: output(workshop, "no-such-bucket", "s3-credentials"),
        "BucketNotFound",
        ("spec.output.s3.bucket", "'no-such-bucket' does not exist", "create it"),
    ),
    "wrong-keys": Case(
        lambda workshop: output(workshop, BUCKET, "wrong-keys"),
        "OutputAccessDenied",
        ("spec.output", "credentials are not valid", "AWS_SECRET_ACCESS_KEY"),
    ),
    "no-secret": Case(
        lambda workshop: output(workshop, BUCKET, "no-such-secret"),
        "OutputAccessDenied",
        ("spec.output.secretRef", "'no-such-secret'", "AWS_ACCESS_KEY_ID"),
    ),
    "no-column": Case(
        lambda workshop: {"dataset": {"uri": f"s3://{BUCKET}/data/broken.jsonl"}},
        "DatasetInvalid",
        ("spec.dataset", "broken.jsonl line 18", "completion"),
    ),
    "no-modules": Case(
        lambda workshop: {"method": {"lora": {"targetModules": ["q_attn", "v_attn"]}}},
        "TargetModulesNotFound",
        ("spec.method.lora.targetModules", "q_attn", "q_proj", "v_proj", "down_proj"),
    ),
}


@pytest.fixture(scope="module")
def refusals(workshop: Workshop) -> Iterator[dict[str, Object]]:
    """Apply all jobs together; return each once it has failed for good."""
    broken = [dict(row) for row in ROWS]
    del broken[17]["completion"]
    workshop.store.put("data/broken.jsonl", jsonl(broken))
    secret = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "not-the-right-one"}
    metadata = {"name": "wrong-keys"}
    workshop.namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": secret})
    workshop.namespace.apply(*(job(name, workshop.store, **case.sections(workshop)) for name, case in CASES.items()))
    yield {name: refused(workshop.namespace, name) for name in CASES}
    workshop.namespace.kubectl("delete", "finetunejob", *CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_preflight_says_what_is_wrong_and_where(refusals: dict[str, Object], name: str) -> None:
    preflight = condition(refusals[name], "PreflightPassed")
    assert (preflight["status"], preflight["reason"]) == ("False", CASES[name].reason), preflight["message"]
    for part in CASES[name].says:
        assert part in preflight["message"]
    assert refusals[name]["status"]["phase"] == "Failed"
    assert condition(refusals[name], "Ready")["status"] == "False"


@pytest.mark.parametrize("name", CASES)
def test_no_pod_asked_for_a_gpu(refusals: dict[str, Object], workshop: Workshop, name: str) -> None:
    pods = workshop.pods.pods_of(name)
    assert len(pods) >= 1
    assert {pod["metadata"]["labels"]["finetune-operator.io/role"] for pod in pods.values()} == {"preflight"}
    assert sum(gpus(pod) for pod in pods.values()) == 0


def test_no_secret_is_told_to_anyone(refusals: dict[str, Object], workshop: Workshop) -> None:
    described = workshop.namespace.kubectl("describe", "finetunejob,events")
    logs = workshop.system.kubectl("logs", "deployment/finetune-operator", "--tail=-1")
    assert "not-the-right-one" not in described + logs
