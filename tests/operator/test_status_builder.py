"""The status builder writes only declared fields, and keeps what a newer version wrote."""

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentStatus
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_operator.reconcile.finetunejob.plan import make_plan
from finetune_operator.reconcile.status_builder import StatusBuilder, read_status
from tests.operator.fake_cluster import NOW, SETTINGS, FakeCluster, finetune_job, terminated
from tools.testing.operator_messages import PREFLIGHT_PASSED, PROGRESS, SPEC


def build(status: dict[str, Any]) -> StatusBuilder[FineTuneJobStatus]:
    return StatusBuilder(FineTuneJobStatus, finetune_job(status=status), NOW)


def test_a_misspelt_field_cannot_be_written() -> None:
    with pytest.raises(ValidationError, match="prgress"):
        build({}).set(FineTuneJobStatus(prgress=None))  # type: ignore[call-arg]  # this is what mypy refuses


def test_a_field_that_is_set_replaces_the_one_before_and_no_other() -> None:
    builder = build({"phase": "Training", "progress": {**PROGRESS, "evalLoss": 3.0}})
    builder.set(FineTuneJobStatus.model_validate({"progress": PROGRESS}))
    status = builder.as_json()
    assert status == {"phase": "Training", "progress": PROGRESS, "observedGeneration": 1, "conditions": []}


def test_fields_of_a_newer_version_stay_as_they_are() -> None:
    newer = {"phase": "Suspended", "queue": {"position": 3}, "adapter": {"uri": "s3://b/a", "format": "new"}}
    builder = build(newer)
    builder.set(FineTuneJobStatus(warnings=["a warning"]))
    assert builder.as_json() == {**newer, "warnings": ["a warning"], "observedGeneration": 1, "conditions": []}


def test_fields_of_a_newer_version_survive_in_sections_that_are_replaced() -> None:
    attempts = [
        {"number": 1, "jobName": "a-train-1", "reason": "SolarFlare", "node": "n", "exitCode": "none"},
        {"number": 2, "jobName": "a-train-2", "adjustments": [{"field": "x", "before": "1", "after": "2", "why": "w"}]},
    ]
    builder = build({"progress": {**PROGRESS, "evalLoss": 3.0, "samples": 5}, "attempts": attempts})
    before = builder.read()
    builder.set(FineTuneJobStatus.model_validate({"progress": {**PROGRESS, "step": 11}}))
    builder.set(FineTuneJobStatus(attempts=before.attempts))
    status = builder.as_json()
    assert status["progress"] == {**PROGRESS, "step": 11, "samples": 5}
    assert status["attempts"] == attempts
    builder.set(FineTuneJobStatus(attempts=before.attempts[1:]))
    assert builder.as_json()["attempts"] == attempts[1:], "what is dropped on purpose stays dropped"


def test_of_a_list_only_the_items_that_cannot_be_read_are_left_out() -> None:
    good = {"number": 3, "jobName": "a-train-3"}
    status = read_status(FineTuneJobStatus, {"attempts": [{}, {"number": "x"}, good]})
    assert [attempt.number for attempt in status.attempts] == [3]


def test_a_spec_of_a_newer_crd_runs_and_what_is_ignored_is_reported() -> None:
    cluster = FakeCluster({**SPEC, "suspendAfter": "night", "training": {"maxSteps": 3, "tempo": "allegro"}})
    cluster.settle()
    assert cluster.created == ["a-preflight"]
    assert cluster.condition("Accepted") == ("True", "Accepted")
    assert "does not know spec.training.tempo, spec.suspendAfter and ignores it" in cluster.message("Accepted")


def test_a_spec_of_a_newer_crd_whose_method_is_not_known_is_refused_by_its_name() -> None:
    cluster = FakeCluster({**SPEC, "method": {"telepathy": {}}})
    cluster.settle()
    assert cluster.created == []
    assert "spec.method.telepathy: unknown field" in cluster.message("Accepted")


def test_values_that_cannot_be_read_are_left_out_and_the_rest_is_read() -> None:
    attempts = [
        {"number": 1, "jobName": "a-train-1", "reason": "SolarFlare", "adjustments": [{"path": "x"}], "node": "n"},
        {"number": 2, "jobName": "a-train-2", "exitCode": "none"},
    ]
    status = read_status(FineTuneJobStatus, {"phase": "Daydreaming", "attempts": attempts, "warnings": ["w"]})
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
