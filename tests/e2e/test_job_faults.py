"""Kill operator, trainer pods and S3 server under running jobs: each ends with the weights of an undisturbed one."""

import hashlib
import json
import time

import pytest

from tests.e2e import containers
from tests.e2e.conftest import Workshop, await_operator
from tests.e2e.jobs import (
    JOB_SECONDS,
    STEPS,
    await_checkpoint,
    checkpoint_step,
    job,
    prefix_of,
    succeeded,
    trainer_pod,
)
from tests.e2e.namespace import Object, condition, gpus
from tests.e2e.objectstore import ObjectStore

pytestmark = [pytest.mark.node, pytest.mark.timeout(3000)]
AWAY_SECONDS = 20.0


@pytest.mark.exhaustive  # tests/operator/test_killed.py kills it after each of its writes
@pytest.mark.chaos("kill -9 of the operator's container at each stage (real pods)")
def test_the_operator_is_killed_at_every_stage_of_a_job(workshop: Workshop, undisturbed: Object) -> None:
    name, namespace = "operator-killed", workshop.namespace
    # what no other job asks of its preflight: so it has one of its own
    resources = {"requests": {"memory": "1Gi"}, "preflight": {"requests": {"cpu": "30m"}}}
    namespace.apply(job(name, workshop.store, resources=resources))
    kill_operator(workshop)
    namespace.until("the preflight's pod", lambda: namespace.pods_of(name), 60, pause=0.05)
    kill_operator(workshop)
    namespace.until("the trainer's Job", lambda: namespace.find("job", f"{name}-train-1"), 120, pause=0.05)
    kill_operator(workshop)
    await_checkpoint(namespace, workshop.store, name, 8)
    kill_operator(workshop)
    prefix = prefix_of(namespace.get("finetunejob", name))
    manifest = f"{prefix}/adapter/manifest.json"
    namespace.until("the adapter in S3", lambda: manifest in workshop.store.keys(prefix), JOB_SECONDS, pause=0.05)
    kill_operator(workshop)

    succeeded_job = succeeded(namespace, name)
    assert [attempt["reason"] for attempt in succeeded_job["status"]["attempts"]] == ["Succeeded"]
    assert "resumedFromStep" not in succeeded_job["status"]["attempts"][0]
    pods = workshop.pods.pods_of(name).values()
    assert sorted(pod["metadata"]["labels"]["finetune-operator.io/role"] for pod in pods) == ["preflight", "trainer"]
    assert sum(gpus(pod) for pod in pods) == 1
    assert weights(workshop.store, succeeded_job) == weights(workshop.store, undisturbed)
    assert outcome(succeeded_job) == outcome(undisturbed)


@pytest.mark.chaos("the kernel kills the trainer for its memory (real pods)")
def test_a_job_without_a_gpu_that_the_kernel_kills_for_its_memory_is_made_smaller_until_it_fits(
    workshop: Workshop,
) -> None:
    name, namespace = "too-large", workshop.namespace
    # 16 sequences of 256 tokens have logits of 0.8 GB, which the loss needs several times over
    training = {"maxSteps": 2, "perDeviceBatchSize": 16, "maxLength": 256, "learningRate": 2e-3}
    resources = {"gpusPerNode": 0, "requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    namespace.apply(job(name, workshop.store, training=training, resources=resources, checkpoint={"everySteps": 1}))
    attempts = succeeded(namespace, name)["status"]["attempts"]
    assert {attempt["reason"] for attempt in attempts[:-1]} == {"HostOutOfMemory"}
    assert attempts[-1]["reason"] == "Succeeded"
    changes = {change["field"]: change for change in attempts[-1]["adjustments"]}
    batch = int(changes["training.perDeviceBatchSize"]["after"])
    assert batch * int(changes["training.gradientAccumulationSteps"]["after"]) == 16
    assert batch == 16 // 2 ** (len(attempts) - 1)


@pytest.mark.chaos("the trainer's pod is evicted, then force-deleted (real pods)")
def test_the_trainer_pod_is_evicted_and_killed_in_mid_training(workshop: Workshop, undisturbed: Object) -> None:
    name, namespace = "pod-evicted", workshop.namespace
    namespace.apply(job(name, workshop.store))
    await_checkpoint(namespace, workshop.store, name, 4)
    namespace.evict(trainer_pod(namespace, name, 1)["metadata"]["name"])
    trainer_pod(namespace, name, 2)
    prefix = prefix_of(namespace.get("finetunejob", name))
    first = checkpoint_step(workshop.store, prefix)
    await_checkpoint(namespace, workshop.store, name, first + 4)
    second_pod = trainer_pod(namespace, name, 2)["metadata"]["name"]
    namespace.kubectl("delete", "pod", second_pod, "--grace-period=0", "--force")

    succeeded_job = succeeded(namespace, name)
    attempts = succeeded_job["status"]["attempts"]
    assert [attempt["reason"] for attempt in attempts] == ["Preempted", "Preempted", "Succeeded"]
    assert [attempt["number"] for attempt in attempts] == [1, 2, 3]
    assert [attempt["jobName"] for attempt in attempts] == [f"{name}-train-{number}" for number in (1, 1, 2)]
    assert "resumedFromStep" not in attempts[0]
    assert attempts[1]["resumedFromStep"] == first
    assert first < attempts[2]["resumedFromStep"] < STEPS
    assert all(attempt["message"] for attempt in attempts[:2])
    assert weights(workshop.store, succeeded_job) == weights(workshop.store, undisturbed)
    assert outcome(succeeded_job) == outcome(undisturbed)


@pytest.mark.exhaustive  # tests/trainer/test_train.py has an S3 service that goes away
@pytest.mark.chaos("kill -9 of the S3 server during an upload (real pods)")
def test_the_s3_server_is_unavailable_during_an_upload(workshop: Workshop, undisturbed: Object) -> None:
    name, namespace, store = "s3-away", workshop.namespace, workshop.store
    namespace.apply(job(name, store))
    await_checkpoint(namespace, store, name, 4)
    (server,) = namespace.all("pods", "app=s3")
    process = containers.process_id(namespace.cluster, containers.container_id(server, "versitygw"))
    prefix = prefix_of(namespace.get("finetunejob", name))
    namespace.until("an upload is under way", lambda: torn(store, prefix), 120, pause=0.002)
    namespace.cluster.exec_in_node(["kill", "-9", process])
    store.stop()
    try:
        time.sleep(AWAY_SECONDS)
    finally:
        store.start()

    succeeded_job = succeeded(namespace, name)
    assert [attempt["reason"] for attempt in succeeded_job["status"]["attempts"]] == ["Succeeded"]
    assert condition(succeeded_job, "Succeeded")["status"] == "True"
    assert not torn(store, prefix)
    assert weights(store, succeeded_job) == weights(store, undisturbed)


def kill_operator(workshop: Workshop) -> None:
    """Kill the operator's process, and start a new pod.

    The kubelet makes a container that dies often wait for minutes.
    """
    await_operator(workshop.system)
    (pod,) = [
        candidate for candidate in workshop.system.all("pods") if not candidate["metadata"].get("deletionTimestamp")
    ]
    containers.kill(workshop.namespace.cluster, pod, "operator")
    workshop.system.kubectl("delete", "pod", pod["metadata"]["name"])


def weights(store: ObjectStore, item: Object) -> str:
    """Return the digest of the adapter's weights in S3, which must be the one of its manifest."""
    prefix = f"{prefix_of(item)}/adapter"
    files = {entry["path"]: entry["sha256"] for entry in json.loads(store.read(f"{prefix}/manifest.json"))["files"]}
    digest = f"sha256:{hashlib.sha256(store.read(f'{prefix}/adapter_model.safetensors')).hexdigest()}"
    assert files["adapter_model.safetensors"] == digest
    return digest


def outcome(item: Object) -> dict[str, object]:
    """Return the result in the status, without what differs from job to job: names, times, the manifest's digest."""
    status = item["status"]
    adapter = {
        name: value for name, value in status["adapter"].items() if name in ("peftType", "rank", "targetModules")
    }
    return {
        "adapter": adapter,
        "evaluation": status["evaluation"],
        "conditions": {
            condition["type"]: (condition["status"], condition["reason"]) for condition in status["conditions"]
        },
        "steps": (status["progress"]["step"], status["progress"]["totalSteps"], status["progress"]["percent"]),
    }


def torn(store: ObjectStore, prefix: str) -> list[str]:
    """Return the directories below a job's prefix that have files, but no manifest in or above them.

    The base's scores are one file each, which is complete or absent.
    """
    keys = store.keys(prefix)
    directories = {key.rsplit("/", 1)[0] for key in keys} - {f"{prefix}/checkpoints/base-scores"}
    complete = tuple(f"{directory}/" for directory in directories if f"{directory}/manifest.json" in keys)
    return sorted(directory for directory in directories if not f"{directory}/".startswith(complete))
