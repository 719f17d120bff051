"""Which pods a pass over a FineTuneJob sees."""

from typing import Any

import pytest

from finetune_operator.cache import Cache
from finetune_operator.kube.kinds import JOB_LABEL, JOB_NAME_LABEL, POD
from finetune_operator.reconcile.finetunejob.gather import group_pods

RESOURCE: dict[str, Any] = {
    "metadata": {"namespace": "ns", "name": "a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
}


def pod(owner: str | None) -> dict[str, Any]:
    references = [{"uid": owner, "controller": True}] if owner else []
    meta = {
        "namespace": "ns", "name": "a-train-1-x", "uid": "p", "resourceVersion": "1", "ownerReferences": references,
        "creationTimestamp": "2026-01-01T00:01:00Z", "labels": {JOB_LABEL: "a", JOB_NAME_LABEL: "a-train-1"},
    }  # fmt: skip
    return {"metadata": meta, "spec": {}, "status": {"phase": "Running"}}


def batch_job(*, deleted: bool = False) -> dict[str, Any]:
    meta = {"name": "a-train-1", "uid": "j"}
    return {"metadata": meta | ({"deletionTimestamp": "2026-01-01T00:02:00Z"} if deleted else {})}


@pytest.mark.parametrize(
    ("jobs", "owner", "is_seen"),
    [
        ([batch_job()], "j", True),
        ([batch_job(deleted=True)], "j", True),
        ([batch_job(deleted=True)], None, True),
        ([], None, True),
        ([], "j", True),
        ([batch_job()], "an older Job of this name", False),
    ],
    ids=["owned", "owned while it is deleted", "orphaned while it is deleted", "orphaned", "left", "of another Job"],
)
def test_a_pod_that_may_train_is_seen(jobs: list[dict[str, Any]], owner: str | None, is_seen: bool) -> None:
    cache = Cache()
    cache.put(POD, pod(owner))
    assert ("a-train-1" in group_pods(RESOURCE, jobs, cache)) is is_seen
