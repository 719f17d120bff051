"""The status builder writes only declared fields, and keeps what a newer version wrote."""

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentStatus
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_operator.reconcile.finetunejob.plan import make_plan
from finetune_operator.reconcile.status_builder import StatusBuilder, read_status
from tests.operator.fake_cluster import NOW, SETTINGS, FakeCluster, finetune_job, terminated
from tools.testing.operator_messages import PREFLIGHT_PASSED, PROGRESS


def build(status: dict[str, Any]) -> StatusBuilder[FineTuneJobStatus]:
    return StatusBuilder(FineTuneJobStatus, finetune_job(status=status), NOW)


def test_a_misspelt_field_cannot_be_written() -> None:
    with pytest.raises(ValidationError, match="prgress"):
        build({}).set(FineTuneJobStatus(prgress=None))  # type: ignore[call-arg]  # this is what mypy refuses


def test_a_field_that_is_set_replaces_the_one_before_and_no_other() -> None:
    builder = build({"phase": "Training", "progress": {**PROGRESS, "evalLoss": 3.0}})
    builder.set(FineTuneJobStatus.model_validate({"progress": PROGRESS}))
    written = builder.as_json()
    assert written == {"phase": "Training", "progress": PROGRESS, "observedGeneration": 1, "conditions": []}


def test_fields_of_a_newer_version_stay_as_they_are() -> None:
    newer = {"phase": "Suspended", "queue": {"position": 3}, "adapter": {"uri": "s3://b/a", "format": "new"}}
    builder = build(newer)
    builder.set(FineTuneJobStatus(warnings=["a warning"]))
    assert builder.as_json() == {**newer, "warnings": ["a warning"], "observedGeneration": 1, "conditions": []}


def test_values_that_cannot_be_read_are_left_out_and_the_rest_is_read() -> None:
    attempts = [
        {"number": 1, "jobName": "a-train-1", "reason": "SolarFlare", "adjustments": [{"path": "x"}], "node": "n"},
        {"number": 2, "jobName": "a-train-2", "exitCode": "none"},
    ]
    status = read_status(FineTuneJobStatus, {"phase": "Suspended", "attempts": attempts, "warnings": ["w"]})
    assert status.phase is None
    assert status.warnings == ["w"]
    assert [(attempt.number, attempt.reason, attempt.exit_code) for attempt in status.attempts] == [
        (1, "SolarFlare", None),
        (2, None, None),
    ]
    assert (
        read_status(AdapterDeploymentStatus, {"desired": {"digest": "md5:1"}, "pods": 3}) == AdapterDeploymentStatus()
    )


def test_a_reason_that_only_a_newer_version_knows_counts_as_an_error() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED))
    cluster.settle()
    attempts = [
        {**cluster.resource["status"]["attempts"][0], "reason": "SolarFlare", "finishedAt": PROGRESS["updatedAt"]}
    ]
    cluster.resource = {**cluster.resource, "status": {**cluster.resource["status"], "attempts": attempts}}
    decided = make_plan(cluster.observed(), cluster.now, SETTINGS)
    assert decided.create is None
    assert decided.requeue_after == SETTINGS.retry_backoff_seconds
    assert decided.status["attempts"] == attempts
