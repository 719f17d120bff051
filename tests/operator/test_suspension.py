"""Jobs that a person or Kueue suspends, and jobs that have run for as long as they may."""

import copy
from datetime import timedelta

from finetune_api.timestamps import format_timestamp
from finetune_operator.policies.finished import is_finished
from tests.operator.fake_cluster import FakeCluster, disrupted, running, terminated
from tests.operator.lives import SAVED, after_preflight, in_training, reasons, trainer
from tools.testing.operator_messages import PREFLIGHT_PASSED, SPEC, SUCCEEDED


def test_a_suspended_job_gives_no_second_run() -> None:
    cluster = in_training()
    cluster.suspend("a-train-1", "kueue")
    cluster.settle()
    assert cluster.condition("Running") == ("False", "Suspended")
    assert cluster.condition("Ready") == ("Unknown", "Suspended")
    assert "a-train-1 is suspended by kueue" in cluster.message("Ready")
    cluster.wait(86400)
    cluster.settle()
    assert reasons(cluster) == ["Suspended", None], "an attempt is a run of a pod"
    assert "a-train-1 was suspended by kueue" in cluster.resource["status"]["attempts"][0]["message"]
    cluster.resume("a-train-1")
    cluster.play(running())
    assert cluster.condition("Running") == ("True", "Training")
    assert cluster.created == ["a-preflight", "a-train-1"]


def test_suspensions_of_the_job_cost_no_retries_and_what_its_pod_left_is_kept() -> None:
    cluster = in_training(failurePolicy={"retries": {"onPreemption": 0}})
    for number in (1, 2, 3):
        cluster.set_pod(copy.deepcopy(SAVED))
        cluster.suspend("a-train-1", "kueue", keeps_pod=True)
        cluster.settle()
        assert reasons(cluster) == [*["Suspended"] * number, None]
        assert cluster.resource["status"]["checkpoint"]["step"] == 7
        cluster.resume("a-train-1")
        cluster.play(running())
    assert cluster.created == ["a-preflight", "a-train-1"]
    cluster.play(disrupted())
    assert cluster.condition("Succeeded") == ("False", "Preempted")


def test_a_job_that_is_suspended_after_its_attempt_has_ended_goes_before_the_next_one_comes() -> None:
    cluster = after_preflight()
    failed = terminated(1, trainer("TrainerError"))
    failed["status"]["phase"] = "Running"  # the Job controller does not know yet
    cluster.play(failed)
    assert reasons(cluster) == ["TrainerError"]
    cluster.wait(3600)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"], "its Job may make another pod"
    assert "Attempt 2 begins when these have ended: Job a-train-1." in cluster.message("Ready")
    cluster.suspend("a-train-1", "kubectl")
    cluster.settle()
    assert "a-train-1" not in cluster.jobs
    assert cluster.created == ["a-preflight", "a-train-1", "a-train-2"]


def test_a_preflight_that_somebody_suspends_says_so() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.suspend("a-preflight", "kueue")
    cluster.settle()
    assert cluster.condition("PreflightPassed") == ("Unknown", "Suspended")
    assert cluster.condition("Ready") == ("Unknown", "Suspended")


def test_suspending_saves_a_checkpoint_and_frees_the_gpu_and_resuming_continues() -> None:
    cluster = after_preflight(failurePolicy={"retries": {"onPreemption": 0, "onError": 0}})
    for number in (1, 2, 3):
        cluster.play(running())
        cluster.set_spec(suspend=True)
        cluster.settle()
        assert f"a-train-{number}" not in cluster.jobs, "deleted, so that nobody resumes it"
        assert cluster.condition("Suspended") == ("False", "Suspending")
        assert cluster.condition("Running") == ("True", "Training")
        cluster.wait(30)
        cluster.settle()
        cluster.stop_pods(SAVED)
        cluster.settle()
        assert cluster.condition("Suspended") == ("True", "Suspended")
        assert cluster.condition("Running") == ("False", "Suspended")
        assert cluster.condition("Ready") == ("False", "Suspended")
        assert cluster.condition("Reconciling") is None
        assert cluster.resource["status"]["phase"] == "Suspended"
        assert "from the checkpoint of step 7" in cluster.message("Suspended")
        cluster.wait(86400)
        cluster.settle()
        assert cluster.job_of("trainer") is None
        cluster.set_spec(suspend=False)
        cluster.settle()
        assert cluster.condition("Suspended") == ("False", "Resumed")
        assert cluster.created[-1] == f"a-train-{number + 1}"
    cluster.play(terminated(0, SUCCEEDED))
    assert reasons(cluster) == ["Suspended", "Suspended", "Suspended", "Succeeded"]
    assert cluster.resource["status"]["suspensions"] == 3


def test_suspensions_cost_no_retries_however_many_there_were() -> None:
    cluster = after_preflight(failurePolicy={"retries": {"onPreemption": 1}})
    for _ in range(30):
        for suspend in (True, False):
            cluster.set_spec(suspend=suspend)
            cluster.settle()
    cluster.play(terminated(40, trainer("Preempted"), deleted=True))
    assert cluster.created[-1] == "a-train-32"
    assert len(reasons(cluster)) == 20
    cluster.play(terminated(40, trainer("Preempted"), deleted=True))
    assert cluster.condition("Succeeded") == ("False", "Preempted")


def test_a_job_may_be_created_suspended() -> None:
    cluster = FakeCluster({**SPEC, "suspend": True})
    cluster.settle()
    assert cluster.created == []
    assert cluster.condition("Accepted") == ("True", "Accepted")
    assert cluster.condition("Suspended") == ("True", "Suspended")
    cluster.set_spec(suspend=False)
    cluster.settle()
    assert cluster.created == ["a-preflight"]
    assert cluster.condition("Suspended") == ("False", "Resumed")


def test_a_preflight_is_suspended_too() -> None:
    cluster = FakeCluster({**SPEC, "failurePolicy": {"retries": {"onPreemption": 0}}})
    cluster.settle()
    cluster.play(running())
    cluster.set_spec(suspend=True)
    cluster.settle()
    assert cluster.jobs == {}
    assert cluster.condition("Suspended") == ("False", "Suspending")
    cluster.stop_pods(terminated(143, deleted=True))
    cluster.settle()
    assert cluster.condition("Suspended") == ("True", "Suspended")
    cluster.set_spec(suspend=False)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-preflight-2"]


def test_a_preflight_that_passes_while_it_is_suspended_has_passed() -> None:
    cluster = FakeCluster()
    cluster.settle()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED))
    cluster.set_spec(suspend=True)
    cluster.settle()
    assert cluster.condition("PreflightPassed") == ("True", "PreflightPassed")
    assert cluster.condition("Suspended") == ("True", "Suspended")
    assert cluster.created == ["a-preflight"]


def test_a_suspension_that_is_taken_back_waits_for_the_pod_that_still_stops() -> None:
    cluster = in_training()
    for suspend in (True, False):
        cluster.set_spec(suspend=suspend)
        cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"]
    cluster.stop_pods(SAVED)
    cluster.settle()
    assert reasons(cluster) == ["Suspended", None]
    assert cluster.condition("Suspended") == ("False", "Resumed")


def test_a_trainer_that_ends_for_its_own_reason_while_it_is_suspended_keeps_it() -> None:
    for ending, condition in (
        (terminated(0, SUCCEEDED, deleted=True), ("True", "AdapterVerified")),
        (terminated(32, trainer("LossDiverged"), deleted=True), ("False", "LossDiverged")),
    ):
        cluster = in_training()
        cluster.set_spec(suspend=True)
        cluster.settle()
        cluster.stop_pods(ending)
        cluster.settle()
        assert cluster.condition("Succeeded") == condition


def test_the_time_of_all_attempts_counts_for_the_deadline_and_no_other_time() -> None:
    cluster = after_preflight(activeDeadlineSeconds=100)
    cluster.wait(1000)  # for a node
    cluster.play(running())
    assert cluster.requeue_after == 100
    cluster.wait(40)
    cluster.set_spec(suspend=True)
    cluster.settle()
    cluster.stop_pods(SAVED)
    cluster.settle()
    assert cluster.resource["status"]["activeSeconds"] == 40
    cluster.wait(5000)
    cluster.set_spec(suspend=False)
    cluster.settle()
    cluster.play(running())
    assert cluster.requeue_after == 60
    cluster.wait(30)
    cluster.suspend("a-train-2", "kueue")
    cluster.settle()
    cluster.wait(5000)
    cluster.settle()
    assert cluster.resource["status"]["activeSeconds"] == 70
    cluster.resume("a-train-2")
    cluster.play(running())
    assert cluster.requeue_after == 30
    cluster.wait(30)
    cluster.settle()
    assert "a-train-2" not in cluster.jobs
    assert not is_finished(cluster.resource), "it saves a checkpoint"
    assert cluster.condition("Ready") == ("Unknown", "DeadlineExceeded")
    cluster.stop_pods(SAVED)
    cluster.settle()
    assert reasons(cluster) == ["Suspended", "Suspended", "DeadlineExceeded"]
    assert cluster.condition("Succeeded") == cluster.condition("Ready") == ("False", "DeadlineExceeded")
    assert cluster.resource["status"]["checkpoint"]["step"] == 7


def test_how_long_a_trainer_ran_is_measured_by_one_clock() -> None:
    cluster = after_preflight(activeDeadlineSeconds=100)
    begin = cluster.now + timedelta(hours=5)
    failed = terminated(1, trainer("TrainerError"), at=begin + timedelta(seconds=30))
    failed["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"] = format_timestamp(begin)
    cluster.play(failed)
    assert cluster.resource["status"]["activeSeconds"] == 30


def test_no_attempt_begins_after_the_deadline() -> None:
    cluster = in_training()
    cluster.wait(50)
    cluster.play(terminated(1, trainer("TrainerError")))
    cluster.set_spec(activeDeadlineSeconds=50)
    cluster.wait(1000)
    cluster.settle()
    assert cluster.created == ["a-preflight", "a-train-1"]
    assert cluster.condition("Succeeded") == ("False", "DeadlineExceeded")
