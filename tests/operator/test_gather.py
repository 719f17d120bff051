"""Which pods a pass over a FineTuneJob sees."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune_operator.cache import Cache
from finetune_operator.context import Context
from finetune_operator.kube.kinds import FINETUNE_JOB, JOB, JOB_LABEL, JOB_NAME_LABEL, POD
from finetune_operator.pod_reports import PodReports
from finetune_operator.reconcile.finetunejob.gather import gather, group_pods
from tests.operator.fake_cluster import SETTINGS

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


@pytest.mark.parametrize(
    ("is_complete", "recorded", "is_looked_up"),
    [
        (True, {"startedAt": "2026-01-01T00:00:30Z"}, True),
        (True, None, True),
        (True, {"startedAt": "2026-01-01T00:00:30Z", "finishedAt": "2026-01-01T00:01:30Z"}, False),
        (False, {"startedAt": "2026-01-01T00:00:30Z"}, False),
    ],
    ids=["its run is in the status", "the status is older", "its end is in the status", "it goes on"],
)
def test_the_pod_of_a_finished_job_that_no_watch_has_told_of_is_looked_up(
    is_complete: bool, recorded: dict[str, str] | None, is_looked_up: bool
) -> None:
    queries: list[str | None] = []

    async def list_pods(_: object, __: str, labels: str | None = None) -> tuple[list[dict[str, Any]], str]:
        queries.append(labels)
        return [pod("j")], "2"

    run = {"number": 1, "jobName": "a-train-1", **(recorded or {})}
    resource = {**RESOURCE, "spec": {}, "status": {"attempts": [run]} if recorded else {}}
    conditions = [{"type": "Complete", "status": "True"}] if is_complete else []
    job = batch_job()
    job["metadata"] |= {
        "namespace": "ns", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:30Z",
        "ownerReferences": [{"uid": "u", "controller": True}],
    }  # fmt: skip
    cache = Cache()
    cache.put(FINETUNE_JOB, {**resource, "metadata": {**RESOURCE["metadata"], "resourceVersion": "1"}})
    cache.put(JOB, {**job, "status": {"conditions": conditions}})

    async def find_no_warnings(_: str) -> dict[str, str]:
        return {}

    context = SimpleNamespace(
        cache=cache,
        kube=SimpleNamespace(list=list_pods),
        pod_reports=PodReports(),
        settings=SETTINGS,
        warnings=SimpleNamespace(find=find_no_warnings),
        now=lambda: datetime(2026, 1, 1, 0, 2, tzinfo=UTC),
    )
    observed = asyncio.run(gather((FINETUNE_JOB.name, "ns", "a"), cast(Context, context)))
    assert observed is not None
    assert queries == ([f"{JOB_NAME_LABEL}=a-train-1"] if is_looked_up else [])
    assert list(observed.pods) == (["a-train-1"] if is_looked_up else [])
