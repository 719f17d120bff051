"""Whole objects for the tests of the API, and small changes of them by the path of a field."""

import copy
from typing import Any

Object = dict[str, Any]

FINETUNE_JOB: Object = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "shakespeare", "namespace": "default"},
    "spec": {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "dataset": {"uri": "s3://data/shakespeare.txt"},
        "method": {"lora": {"rank": 8, "targetModules": ["q_proj"]}},
        "training": {"maxSteps": 10},
        "output": {"s3": {"bucket": "adapters"}},
    },
}

ADAPTER_DEPLOYMENT: Object = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "AdapterDeployment",
    "metadata": {"name": "shakespeare", "namespace": "default"},
    "spec": {
        "adapter": {"fineTuneJobRef": {"name": "shakespeare"}},
        "servedName": "shakespeare",
        "target": {"deploymentRef": {"name": "vllm"}},
    },
}

DIGEST = "sha256:" + "0" * 64
REMOVE = object()


def changed(item: Object, changes: dict[str, Any]) -> Object:
    """Return a copy with other values at paths like ``spec.method.lora.rank``; ``REMOVE`` takes a field away."""
    result = copy.deepcopy(item)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is REMOVE:
            del node[last]
        else:
            node[last] = value
    return result
