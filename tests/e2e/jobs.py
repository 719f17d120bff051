"""Make FineTuneJobs of the tiny Llama, long enough to be interrupted and short enough to wait for."""

import json
from typing import Any

from tests.e2e.namespace import Namespace, Object, condition
from tests.e2e.objectstore import BUCKET, SECRET, ObjectStore

JOB_SECONDS = 420.0
"""From kubectl apply to Ready; importing torch alone takes up to a minute where two pods share two cores."""
STEPS = 40
TRAINING = {"maxSteps": STEPS, "perDeviceBatchSize": 2, "maxLength": 128, "learningRate": 2e-3}
"""The tokens of a step are few: what costs is the loss over a vocabulary of 49,000."""
ROWS = [
    {
        "prompt": f"Question {number}: which numbers follow {number}?\n",
        "completion": " ".join(f"After {number + step} comes {number + step + 1}." for step in range(24)),
    }
    for number in range(120)
]


def jsonl(rows: list[dict[str, str]]) -> str:
    """Return rows as the text of a jsonl file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def job(name: str, store: ObjectStore, **sections: Any) -> Object:
    """Return a FineTuneJob; `sections` replace complete sections of its spec."""
    spec: dict[str, Any] = {
        "model": {"uri": f"s3://{BUCKET}/models/tiny-llama"},
        "dataset": {"uri": f"s3://{BUCKET}/data/rows.jsonl", "validation": {"fraction": 0.05}},
        "method": {"lora": {"rank": 8, "alpha": 16, "dropout": 0.05}},
        "training": TRAINING,
        "evaluation": {"maxRows": 4},
        "checkpoint": {"everySteps": 4},
        "output": {"s3": {"bucket": BUCKET, "endpoint": store.address}, "secretRef": {"name": SECRET}},
        "resources": {"requests": {"memory": "1Gi"}},
    }
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec | sections,
    }


def prefix_of(item: Object) -> str:
    """Return the prefix of a FineTuneJob's objects in the bucket."""
    meta = item["metadata"]
    return f"{meta['namespace']}/{meta['name']}/{meta['uid'][:8]}"


def succeeded(namespace: Namespace, name: str, within: float = JOB_SECONDS) -> Object:
    """Wait until a FineTuneJob is Ready, and return it."""
    return namespace.await_condition("finetunejob", name, "Ready", "True", within)


def refused(namespace: Namespace, name: str, within: float = 120) -> Object:
    """Wait until a FineTuneJob has failed permanently, and return it."""

    def ask() -> Object | None:
        job = namespace.get("finetunejob", name)
        return job if condition(job, "Stalled")["status"] == "True" else None

    return namespace.until(f"FineTuneJob {name} is refused", ask, within)


def trainer_pod(namespace: Namespace, name: str, attempt: int, within: float = 120) -> Object:
    """Wait until the pod of an attempt runs, and return it."""

    def ask() -> Object | None:
        attempts = namespace.get("finetunejob", name).get("status", {}).get("attempts", [])
        pod_name = next((entry.get("podName") for entry in attempts if entry["number"] == attempt), None)
        pod = namespace.find("pod", pod_name) if pod_name else None
        return pod if pod is not None and pod["status"]["phase"] == "Running" else None

    return namespace.until(f"the pod of attempt {attempt} at {name} runs", ask, within)


def checkpoint_step(store: ObjectStore, prefix: str) -> int:
    """Return the step of the newest complete checkpoint in S3; 0 where there is none."""
    keys = store.keys(f"{prefix}/checkpoints")
    steps = [int(key.split("/step-")[1].split("/")[0]) for key in keys if key.endswith("/manifest.json")]
    return max(steps, default=0)


def await_checkpoint(namespace: Namespace, store: ObjectStore, name: str, step: int, within: float = 240) -> int:
    """Wait for a complete checkpoint of this step or a later one, and return its step."""
    prefix = prefix_of(namespace.get("finetunejob", name))

    def ask() -> int | None:
        newest = checkpoint_step(store, prefix)
        return newest if newest >= step else None

    return namespace.until(f"{name}: a checkpoint of step {step} in S3", ask, within, pause=0.1)
