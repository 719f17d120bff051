"""Whatever happens to a job, a second pass changes nothing, and its attempts are one after another."""

from datetime import timedelta

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune_operator.policies.finished import is_finished
from finetune_operator.policies.pod_state import has_ended
from finetune_operator.reconcile.finetunejob.plan import make_plan
from tests.operator.fake_cluster import SETTINGS, FakeCluster, disrupted, pod, running, terminated
from tests.operator.lives import BACKOFF, ENDED_SIDECAR, SAVED, trainer
from tools.testing.operator_messages import PREFLIGHT_PASSED, SPEC, SUCCEEDED

PODS = [
    lambda now: pod(),
    lambda now: running(),
    lambda now: pod(BACKOFF),
    lambda now: pod({"running": {}}, phase="Running", deleted=True),
    lambda now: terminated(0, PREFLIGHT_PASSED, at=now),
    lambda now: terminated(0, SUCCEEDED, at=now),
    lambda now: terminated(1, trainer("TrainerError"), at=now),
    lambda now: terminated(40, trainer("Preempted"), deleted=True, at=now),
    lambda now: terminated(31, trainer("OutOfMemory"), at=now),
    lambda now: terminated(137, reason="OOMKilled", at=now),
    lambda now: terminated(0, "nonsense", at=now),
    lambda now: pod(phase="Failed", status={"reason": "Evicted"}),
    lambda now: running(sidecar=ENDED_SIDECAR),
    lambda now: terminated(1, trainer("TrainerError"), at=now, sidecar={"running": {}}),
    lambda now: terminated(0, SUCCEEDED, at=now, sidecar={"running": {}}),
    lambda now: disrupted(40, trainer("Preempted")),
    lambda now: disrupted(137, deleted=False),
    lambda now: disrupted(32, trainer("LossDiverged")),
    lambda now: disrupted(137, trainer("OutOfMemory"), deleted=False),
]
EVENTS = st.one_of(
    st.tuples(st.just("pod"), st.integers(0, 2 * len(PODS) - 1)),
    st.tuples(st.just("suspend"), st.just(0)),
    st.tuples(st.just("resume"), st.just(0)),
    st.tuples(st.just("suspend the job"), st.just(0)),
    st.tuples(st.just("resume the job"), st.just(0)),
    st.tuples(st.just("pods stop"), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 300)),
    st.tuples(st.just("pod gone"), st.just(0)),
    st.tuples(st.just("job gone"), st.just(0)),
    st.tuples(st.just("job edited"), st.just(0)),
    st.tuples(st.just("pods come and go"), st.integers(1, 3)),
    st.tuples(st.just("operator dies"), st.just(0)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=25))
@example([("pod", 4), ("pod", 11), ("pod", 1), ("job gone", 0), ("pod", 1)])
@example([("pod", 4), ("pod", 1), ("pods come and go", 3), ("pod", 15), ("operator dies", 0), ("pod", 1)])
@example([("pod", 23), ("suspend the job", 0), ("operator dies", 0), ("resume the job", 0)])
def test_whatever_happens_a_second_pass_changes_nothing_and_attempts_are_one_after_another(
    events: list[tuple[str, int]],
) -> None:
    cluster = FakeCluster({**SPEC, "activeDeadlineSeconds": 600, "pendingDeadlineSeconds": 900})
    cluster.settle()
    dies = False
    for event, number in events:
        newest = cluster.job_of("trainer") or cluster.job_of("preflight")
        if event == "pod":
            # any Job that has not ended may get a pod, and none in which a container has ended starts again
            able = [name for name in cluster.jobs if cluster.may_have_pod(name)]
            if able:
                cluster.set_pod(PODS[number % len(PODS)](cluster.now), able[-1 - number // len(PODS) % len(able)])
        elif event in ("suspend the job", "resume the job"):
            cluster.set_spec(suspend=event == "suspend the job")
        elif event == "pods stop":
            cluster.stop_pods(SAVED)
        elif event == "suspend" and newest is not None:
            cluster.suspend(newest, "kueue")
        elif event == "resume":
            for name in cluster.jobs:
                cluster.resume(name)
        elif event == "wait":
            cluster.now += timedelta(seconds=number)
        elif event == "pod gone" and newest is not None:
            cluster.lose_pod(newest)
        elif event == "job gone" and newest is not None:
            cluster.jobs.pop(newest)
        elif event == "job edited" and newest is not None:
            cluster.jobs[newest]["spec"] = {**cluster.jobs[newest]["spec"], "parallelism": 2}
        elif event == "pods come and go" and newest is not None and "-train-" in newest:
            for turn in range(number):  # and the operator sees the last one
                if cluster.may_have_pod(newest):
                    cluster.set_pod(disrupted(137, deleted=turn % 2 == 0), newest)
                    cluster.set_pod(running(), newest)
        if event == "operator dies":
            dies = True  # in the next pass that does something
            continue
        finished_before = is_finished(cluster.resource)
        created_before = len(cluster.created)
        cluster.settle(dies=dies)
        dies = False
        again = make_plan(cluster.observed(), cluster.now, SETTINGS)
        assert again.create is None
        assert again.delete == ()
        assert again.status == cluster.resource["status"]
        check(cluster)
        if finished_before:
            assert len(cluster.created) == created_before, "a finished job is never run again"


def check(cluster: FakeCluster) -> None:
    """Check what must hold at any time."""
    status = cluster.resource["status"]
    attempts = status.get("attempts", [])
    numbers = [attempt["number"] for attempt in attempts]
    assert numbers == sorted(set(numbers))
    assert all("finishedAt" in attempt for attempt in attempts[:-1]), "one attempt at a time"
    pods = [attempt["podUid"] for attempt in attempts if "podUid" in attempt]
    assert len(pods) == len(set(pods)), "no pod is two attempts"
    trainers = [name for name in cluster.created if "-train-" in name]
    assert trainers == [f"a-train-{number}" for number in range(1, len(trainers) + 1)], "no number twice, none left out"
    if trainers:
        assert cluster.condition("PreflightPassed") == ("True", "PreflightPassed")
    alive = [name for name, item in cluster.pods.items() if "-train-" in name and not has_ended(item, "trainer")]
    assert len(alive) <= 1, "two trainers would write to the same place"
    shown = {item["type"]: item["status"] for item in status["conditions"]}
    idle = "Stalled" in shown or shown.get("Suspended") == "True"
    assert shown["Ready"] == ("True" if shown.get("Succeeded") == "True" else "False" if idle else "Unknown")
    assert shown.get("Suspended") != "True" or not alive
    assert ("Reconciling" in shown) != (shown["Ready"] in ("True", "False"))
    assert status["observedGeneration"] == 1
