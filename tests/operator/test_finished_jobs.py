"""What follows the end of a job: its events, its time to live, and that it never runs again."""

from finetune_operator.policies.finished import is_up_to_date
from tests.operator.fake_cluster import pod, running, terminated
from tests.operator.lives import SAVED, after_preflight, trainer
from tools.testing.operator_messages import SUCCEEDED


def test_the_events_tell_the_history_of_a_job_with_many_failures() -> None:
    cluster = after_preflight()
    cluster.play(pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]))
    cluster.play(running())
    cluster.suspend("a-train-1", "kueue")
    cluster.settle()
    cluster.resume("a-train-1")
    cluster.play(running())
    cluster.set_spec(suspend=True)
    cluster.settle()
    cluster.stop_pods(SAVED)
    cluster.settle()
    cluster.set_spec(suspend=False)
    cluster.settle()
    cluster.play(running())
    cluster.play(terminated(0, SUCCEEDED))
    assert cluster.events == [
        "Accepted",
        "PreflightPassed",
        "Unschedulable",
        "AttemptStarted",
        "JobSuspended",
        "AttemptStarted",
        "Suspended",
        "Resumed",
        "AttemptStarted",
        "Succeeded",
    ]


def test_a_finished_job_is_deleted_when_its_time_to_live_is_over_and_its_adapter_is_reported() -> None:
    cluster = after_preflight(ttlSecondsAfterFinished=60)
    cluster.play(terminated(0, SUCCEEDED))
    assert cluster.requeue_after == 60
    assert not is_up_to_date(cluster.resource), "a restarted operator looks at it again"
    cluster.wait(59)
    cluster.settle()
    assert not cluster.is_deleted
    cluster.wait(1)
    cluster.settle()
    assert cluster.is_deleted
    note = cluster.told["Expired", ""]
    assert SUCCEEDED["adapter"]["uri"] in note
    assert SUCCEEDED["adapter"]["digest"] in note
    assert "LORA of rank 8 for smollm" in note
    assert len(note) < 1000


def test_a_failed_job_has_a_time_to_live_too_and_an_unfinished_one_has_none() -> None:
    cluster = after_preflight(ttlSecondsAfterFinished=0)
    cluster.wait(86400)
    cluster.settle()
    assert not cluster.is_deleted
    cluster.play(terminated(32, trainer("LossDiverged")))
    assert cluster.is_deleted
    assert "It ended as Failed and has no adapter" in cluster.told["Expired", ""]


def test_a_finished_job_is_never_run_again() -> None:
    cluster = after_preflight()
    cluster.play(terminated(0, SUCCEEDED))
    status = cluster.resource["status"]
    cluster.jobs.clear()
    cluster.pods.clear()
    cluster.wait(100_000)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert cluster.resource["status"] == status


def test_a_finished_job_still_follows_its_generation() -> None:
    cluster = after_preflight()
    cluster.play(terminated(0, SUCCEEDED))
    cluster.resource["metadata"]["generation"] = 7
    assert not is_up_to_date(cluster.resource)
    cluster.settle()
    assert cluster.resource["status"]["observedGeneration"] == 7
    assert is_up_to_date(cluster.resource)
