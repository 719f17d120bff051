"""With two GPUs two processes train together, save together when the pod is deleted, and continue in the next pod."""

import pytest

from tests.e2e.conftest import Workshop
from tests.e2e.jobs import (
    JOB_SECONDS,
    TRAINING,
    await_checkpoint,
    checkpoint_step,
    job,
    prefix_of,
    succeeded,
    trainer_pod,
)
from tests.e2e.namespace import Object, gpus

pytestmark = [pytest.mark.node, pytest.mark.timeout(3000)]


def test_two_processes_are_stopped_with_their_pod_and_continue_in_the_next(
    workshop: Workshop, undisturbed: Object
) -> None:
    name, namespace, store = "two-gpus", workshop.namespace, workshop.store
    # as many sequences in a step as the job that nothing happened to, one from each process
    training = TRAINING | {"perDeviceBatchSize": 1}
    resources = {"gpusPerNode": 2, "requests": {"memory": "2Gi"}}
    namespace.apply(job(name, store, training=training, resources=resources))
    await_checkpoint(namespace, store, name, 4, within=JOB_SECONDS)
    pod = trainer_pod(namespace, name, 1)
    assert gpus(pod) == 2
    namespace.kubectl("delete", "pod", pod["metadata"]["name"])
    stopped = checkpoint_step(store, prefix_of(namespace.get("finetunejob", name)))

    succeeded_job = succeeded(namespace, name, 2 * JOB_SECONDS)
    first, second = succeeded_job["status"]["attempts"]
    assert (first["reason"], second["reason"]) == ("Preempted", "Succeeded")
    assert second["resumedFromStep"] == stopped
    states = {
        key.rsplit("/", 1)[-1] for key in store.keys(f"{prefix_of(succeeded_job)}/checkpoints") if "/rng_state" in key
    }
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}
    # dropout draws other numbers in each process, so the weights are others, and as good
    assert succeeded_job["status"]["evaluation"]["loss"] == pytest.approx(
        undisturbed["status"]["evaluation"]["loss"], rel=0.1
    )
