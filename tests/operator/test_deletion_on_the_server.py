"""A FineTuneJob with ``output.deletionPolicy: Delete`` is deleted on a real API server, with its garbage collector."""

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import NotFoundException

from devcluster.cluster import Cluster
from finetune_operator.policies.deletion import FINALIZER
from tests.operator.test_killed import proxied, undisturbed
from tools.testing.fake_kubelet import Kubelet, good_run
from tools.testing.kubernetes_api import GROUP, PLURAL, VERSION, Api
from tools.testing.operator_messages import PREFLIGHT_PASSED, SPEC
from tools.testing.operator_process import Operator
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster
OUTPUT: dict[str, Any] = SPEC["output"]
DELETE = {**OUTPUT, "deletionPolicy": "Delete"}
DELETED = {"kind": "CleanUpResult", "reason": "Succeeded", "message": "7 objects were deleted."}
GONE = {"kind": "CleanUpResult", "reason": "OutputAccessDenied", "message": "the Secret does not exist"}
CASCADES = ("background", "foreground", "orphan")


def end_well(job: str) -> tuple[int, dict[str, Any]]:
    return (0, DELETED) if "clean-up" in job else good_run(job)


def delete(cluster: Cluster, api: Api, name: str, cascade: str = "background") -> None:
    cluster.kubectl("--namespace", api.namespace, "delete", "ftj", name, f"--cascade={cascade}", "--wait=false")


def is_gone(api: Api, name: str) -> bool:
    try:
        api.finetune_job(name)
    except NotFoundException:
        return True
    return False


def await_end(api: Api, name: str) -> None:
    until(f"{name} is gone", lambda: is_gone(api, name))


def notes(api: Api, name: str, reason: str) -> list[str]:
    return [item["note"] for item in api.events() if (item["regarding"]["name"], item["reason"]) == (name, reason)]


def clean_up_job(api: Api, name: str) -> dict[str, Any]:
    return until(
        "the clean-up's Job",
        lambda: next((job for job in api.jobs(name) if job["metadata"]["name"] == f"{name}-clean-up"), None),
    )


@pytest.mark.parametrize("cascade", CASCADES)
def test_a_finished_job_is_deleted_after_its_clean_up(
    cluster: Cluster, api: Api, operator: Operator, cascade: str
) -> None:
    name = f"finished-{cascade}"
    api.create_job(name, output=DELETE)
    with Kubelet(api, name, good_run):
        api.await_condition(name, "Ready", "True")
        assert api.finetune_job(name)["metadata"]["finalizers"] == [FINALIZER]
    delete(cluster, api, name, cascade)
    job = clean_up_job(api, name)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "operator:1"
    assert container["command"][-1] == "clean-up"
    api.run_pod(f"{name}-clean-up")
    api.await_condition(name, "Ready", "Unknown", "Deleting")
    assert "Deleting" in cluster.kubectl("--namespace", api.namespace, "get", "ftj", name)
    api.end_pod(f"{name}-clean-up", 0, DELETED)
    await_end(api, name)
    assert notes(api, name, "OutputDeleted") == [DELETED["message"]]
    until("nothing is left", lambda: not api.jobs(name))


@pytest.mark.parametrize("cascade", CASCADES)
def test_the_trainer_ends_before_the_clean_up_begins(
    cluster: Cluster, api: Api, operator: Operator, cascade: str
) -> None:
    name = f"training-{cascade}"
    api.create_job(name, output=DELETE)
    api.end_pod(f"{name}-preflight", 0, PREFLIGHT_PASSED)
    api.bind_pod(f"{name}-train-1", "node-a")
    pod = api.run_pod(f"{name}-train-1")
    api.await_condition(name, "Running", "True")
    delete(cluster, api, name, cascade)
    until("the pod is to end", lambda: "deletionTimestamp" in api.pods(f"{name}-train-1")[0]["metadata"])
    assert f"{name}-clean-up" not in api.job_names(name)
    api.core.delete_namespaced_pod(pod["metadata"]["name"], api.namespace, grace_period_seconds=0)
    clean_up_job(api, name)
    api.end_pod(f"{name}-clean-up", 0, DELETED)
    await_end(api, name)


@pytest.mark.chaos("the Secret is deleted before the clean-up")
def test_without_its_secret_the_object_goes_and_an_event_says_what_is_left(
    cluster: Cluster, api: Api, operator: Operator
) -> None:
    api.create_job("no-secret", output=DELETE)
    uid = api.finetune_job("no-secret")["metadata"]["uid"]
    with Kubelet(api, "no-secret", lambda job: (19, GONE) if "clean-up" in job else good_run(job)):
        api.await_condition("no-secret", "Ready", "True")
        delete(cluster, api, "no-secret")
        await_end(api, "no-secret")
    (note,) = notes(api, "no-secret", "OutputLeft")
    assert f"s3://adapters/{api.namespace}/no-secret/{uid[:8]} are left: OutputAccessDenied: the Secret" in note
    assert note in operator.log.read_text()


def test_the_field_can_be_edited_at_any_time(cluster: Cluster, api: Api, operator: Operator) -> None:
    def edit(policy: str) -> None:
        change = json.dumps({"spec": {"output": {"deletionPolicy": policy}}})
        cluster.kubectl("--namespace", api.namespace, "patch", "ftj", "edited", "--type=merge", "--patch", change)

    def has_finalizer() -> bool:
        return FINALIZER in api.finetune_job("edited")["metadata"].get("finalizers", [])

    with Kubelet(api, "edited", good_run):
        api.create_job("edited")
        api.await_condition("edited", "Ready", "True")
    assert not has_finalizer()
    edit("Delete")
    until("the finalizer", has_finalizer)
    edit("Retain")
    until("no finalizer", lambda: not has_finalizer())
    edit("Delete")
    until("the finalizer", has_finalizer)
    delete(cluster, api, "edited")
    clean_up_job(api, "edited")
    edit("Retain")
    await_end(api, "edited")


def test_a_job_that_is_refused_before_any_pod_ran_keeps_no_finalizer(api: Api, operator: Operator) -> None:
    api.create_job("refused", output=DELETE, podTemplate={"labels": {"not a label": "x"}})
    api.await_condition("refused", "Succeeded", "False")
    until("no finalizer", lambda: not api.finetune_job("refused")["metadata"].get("finalizers"))


@pytest.fixture
def doomed(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Api, Operator]]:
    """Yield a namespace of its own, to delete."""
    namespace = f"doomed-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    operator = Operator(cluster.kubeconfig, namespace, tmp_path / "log")
    operator.start()
    yield Api(cluster.kubeconfig, namespace), operator
    operator.stop()


@pytest.mark.chaos("the namespace is deleted during a clean-up")
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_namespace_that_is_deleted_does_not_wait(
    cluster: Cluster, doomed: tuple[Api, Operator], has_begun: bool
) -> None:
    api, operator = doomed
    api.create_job("a", output=DELETE)
    with Kubelet(api, "a", good_run):
        api.await_condition("a", "Ready", "True")
    if has_begun:
        delete(cluster, api, "a")
        clean_up_job(api, "a")
    cluster.kubectl("delete", "namespace", api.namespace, "--wait=false")
    await_end(api, "a")
    until("the namespace is gone", lambda: api.namespace not in cluster.kubectl("get", "namespaces", "-o", "name"))
    log = operator.log.read_text()
    assert f"OutputLeft: The job is gone, and its objects in s3://adapters/{api.namespace}/a/" in log
    assert "is being terminated" in log


def revive(operator: Operator) -> None:
    """Start the operator again if it was killed, which may come right after what a test waits for."""
    if operator.process is not None and operator.process.poll() is not None:
        operator.start()


def live_and_die(cluster: Cluster, deadly: int, directory: Path) -> bool:
    """Create a job and delete it, and kill the operator after this write; return whether it was killed."""
    directory.mkdir()
    with proxied(cluster, lambda number: number == deadly, directory) as (proxy, operator, killed):
        operator.start()
        api = Api(cluster.kubeconfig, operator.namespace)
        api.create_job("a", output=DELETE)
        with Kubelet(api, "a", end_well):
            ready = ("True", "AdapterVerified")
            until("killed or done", lambda: killed.is_set() or api.condition("a", "Ready") == ready)
            revive(operator)
            api.await_condition("a", "Ready", "True")
            assert FINALIZER in api.finetune_job("a")["metadata"]["finalizers"]
            delete(cluster, api, "a")
            until("killed or gone", lambda: killed.is_set() or is_gone(api, "a"))
            revive(operator)
            await_end(api, "a")
        assert len(notes(api, "a", "OutputDeleted")) == 1
        created = [path for path in proxy.writes if path.startswith("POST") and path.endswith("/jobs")]
        assert len(created) == 3, f"a Job was made twice: {proxy.writes}"
        return killed.is_set()


@pytest.mark.chaos("kill -9 of the operator after each write of a deletion")
def test_killed_between_any_two_writes(cluster: Cluster, tmp_path: Path) -> None:
    deadly = 1
    while live_and_die(cluster, deadly, tmp_path / f"killed-{deadly}"):
        deadly += 1
        assert deadly < 40, "it was killed after every one of its writes"
    assert deadly > 6, "there were writes to be killed at"


@pytest.mark.chaos("kill -9 after the clean-up's creation, and a garbage collector that is faster than the operator")
@pytest.mark.parametrize("is_lost", [False, True], ids=["", "and the answer is lost"])
def test_a_released_job_gets_no_second_clean_up(cluster: Cluster, tmp_path: Path, is_lost: bool) -> None:
    with undisturbed(cluster, tmp_path / "released", output=DELETE) as (proxy, operator, api):

        def count(metric: str, kind: str) -> float:
            return operator.metric(f"finetune_operator_{metric}", kind=kind)

        passes_at_release: list[float] = []

        def disturb(_: int) -> None:
            """Kill the operator before the status has the clean-up; before its last write is answered, delete the Job.

            The garbage collector would do this, but takes up to 30 s to learn of a new kind.
            """
            if proxy.writes[-1].endswith("/jobs") and not passes_at_release:
                operator.kill()
            elif is_gone(api, "a") and not passes_at_release:
                passes_at_release.append(count("reconcile_seconds_count", "FineTuneJob"))
                events = count("watch_events_total", "Job")
                with suppress(NotFoundException):
                    api.batch.delete_namespaced_job("a-clean-up", api.namespace, propagation_policy="Background")
                until("the operator knows", lambda: count("watch_events_total", "Job") > events)
                if is_lost:
                    raise ConnectionError("the proxy ends the connection")

        with Kubelet(api, "a", good_run):
            api.await_condition("a", "Ready", "True")
        proxy.after_write = disturb
        delete(cluster, api, "a")
        api.end_pod("a-clean-up", 0, DELETED)
        assert "cleanUps" not in api.finetune_job("a")["status"]
        proxy.silent = "finetunejobs"
        operator.start()
        # the deleted Job asks for another pass
        passes = partial(count, "reconcile_seconds_count", "FineTuneJob")
        until("another pass", lambda: passes_at_release and passes() > passes_at_release[0] + 1)
        created = [path for path in proxy.writes if path.startswith("POST") and path.endswith("/jobs")]
        assert len(created) == 3, f"a Job was made twice: {proxy.writes}"


def test_the_same_name_again_is_cleaned_up_again(cluster: Cluster, api: Api, operator: Operator) -> None:
    with Kubelet(api, "again", end_well):
        for _ in range(2):
            api.create_job("again", output=DELETE)
            api.await_condition("again", "Ready", "True")
            delete(cluster, api, "again")
            await_end(api, "again")
    assert len(notes(api, "again", "OutputDeleted")) == 2


def test_a_job_that_expires_is_cleaned_up(api: Api, operator: Operator) -> None:
    with Kubelet(api, "expiring", end_well):
        api.create_job("expiring", output=DELETE, ttlSecondsAfterFinished=1)
        await_end(api, "expiring")
    assert notes(api, "expiring", "OutputDeleted")


def test_the_operator_changes_nothing_of_a_job_but_status_and_finalizers(api: Api, operator: Operator) -> None:
    api.create_job("quiet", output=DELETE)
    with Kubelet(api, "quiet", good_run):
        api.await_condition("quiet", "Ready", "True")
    job = api.custom.get_namespaced_custom_object(GROUP, VERSION, api.namespace, PLURAL, "quiet")
    entries = [entry for entry in job["metadata"]["managedFields"] if entry["manager"] == "finetune-operator"]
    (owned,) = [entry["fieldsV1"] for entry in entries if entry.get("subresource") != "status"]
    assert list(owned) == ["f:metadata"]
    assert list(owned["f:metadata"]) == ["f:finalizers"]
