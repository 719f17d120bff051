"""QLoRA on a model from a PersistentVolumeClaim with text from a ConfigMap, and a training that compiles its layers."""

from collections.abc import Iterator

import pytest

from devcluster import corpus, model
from tests.e2e.conftest import Workshop
from tests.e2e.jobs import job, prefix_of, succeeded
from tests.e2e.namespace import Namespace

pytestmark = [pytest.mark.node, pytest.mark.timeout(3000)]
CLAIM = "models"
VOLUME = "e2e-models"
CHARACTERS = 60_000


@pytest.fixture
def claim(workshop: Workshop) -> Iterator[str]:
    """Yield a claim bound to a directory of the node that holds the tiny Llama; returns the model's address."""
    directory = model.tiny_llama()
    size = {"storage": "1Gi"}
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": VOLUME},
        "spec": {**common, "capacity": size, "hostPath": {"path": str(directory.parent)}},
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM},
        "spec": {**common, "volumeName": VOLUME, "resources": {"requests": size}},
    }
    workshop.namespace.cluster.kubectl("delete", "pv", VOLUME, "--ignore-not-found")
    workshop.namespace.apply(volume, claim)
    yield f"pvc://{CLAIM}/{directory.name}"
    workshop.namespace.kubectl("delete", "pvc", CLAIM, "--wait=false")
    workshop.namespace.cluster.kubectl("delete", "pv", VOLUME, "--wait=false")


def test_a_qlora_job_from_a_claim_and_a_config_map_succeeds(workshop: Workshop, claim: str) -> None:
    namespace: Namespace = workshop.namespace
    text = corpus.shakespeare().train.read_text()[:CHARACTERS]
    metadata = {"name": "verses"}
    namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"verses.txt": text}})
    namespace.apply(
        job(
            "qlora",
            workshop.store,
            model={"uri": claim},
            dataset={"uri": "configmap://verses/verses.txt"},
            method={"qlora": {"rank": 4, "alpha": 8, "quantization": {"type": "nf4"}}},
            training={"maxSteps": 6, "perDeviceBatchSize": 2, "maxLength": 128, "learningRate": 2e-3},
        )
    )
    succeeded_job = succeeded(namespace, "qlora")
    assert (succeeded_job["status"]["adapter"]["peftType"], succeeded_job["status"]["adapter"]["rank"]) == ("LORA", 4)
    assert succeeded_job["status"]["evaluation"]["loss"] < succeeded_job["status"]["evaluation"]["baseLoss"]
    prefix = f"{prefix_of(succeeded_job)}/adapter"
    assert {f"{prefix}/adapter_model.safetensors", f"{prefix}/manifest.json"} <= set(workshop.store.keys(prefix))


@pytest.mark.exhaustive  # to compile takes minutes
def test_the_trainer_image_has_what_compiling_takes(workshop: Workshop) -> None:
    training = {"maxSteps": 2, "perDeviceBatchSize": 1, "maxLength": 64, "learningRate": 2e-3, "compile": "always"}
    workshop.namespace.apply(job("compiled", workshop.store, training=training))
    assert [attempt["reason"] for attempt in succeeded(workshop.namespace, "compiled")["status"]["attempts"]] == [
        "Succeeded"
    ]
