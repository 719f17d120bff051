"""FineTuneJobs of the fake cluster in each phase, and pods that bring them to the next one."""

from typing import Any

from tests.operator.fake_cluster import FakeCluster, running, terminated
from tools.testing.operator_messages import PREFLIGHT_PASSED, SPEC

ENDED_SIDECAR = {"terminated": {"exitCode": 0}}
CHECKPOINT = {"uri": "s3://adapters/checkpoints/step-7", "step": 7, "savedAt": "2026-01-01T12:00:00Z"}
BACKOFF = {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}}


def trainer(reason: str, **more: Any) -> dict[str, Any]:
    return {"kind": "TrainerResult", "reason": reason, "message": "why", **more}


def after_preflight(**spec: Any) -> FakeCluster:
    cluster = FakeCluster({**SPEC, **spec})
    cluster.settle()
    cluster.play(terminated(0, PREFLIGHT_PASSED))
    return cluster


def in_training(**spec: Any) -> FakeCluster:
    cluster = after_preflight(**spec)
    cluster.play(running())
    return cluster


def reasons(cluster: FakeCluster) -> list[str | None]:
    return [attempt.get("reason") for attempt in cluster.resource["status"].get("attempts", [])]


SAVED = terminated(40, trainer("Preempted", checkpoint=CHECKPOINT), deleted=True)
