"""Changes that an object which exists does not allow, and the message for each."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.adapterdeployment.spec import TRAFFIC_IS_KEPT
from finetune_api.finetunejob.editable import IMMUTABLE
from tests.api.case import EMPTY
from tests.api.objects import ADAPTER_DEPLOYMENT, FINETUNE_JOB, Object


@dataclass(frozen=True)
class Change:
    """A change of an object that exists, and the field that does not allow it."""

    name: str
    item: Object
    changes: dict[str, Any]
    message: str = field(default="")


def _cannot(name: str) -> str:
    return IMMUTABLE.format(name)


CHANGES = [
    Change("model", FINETUNE_JOB, {"spec.model.uri": "hf://other/model"}, _cannot("model")),
    Change("dataset", FINETUNE_JOB, {"spec.dataset.uri": "s3://data/other.txt"}, _cannot("dataset")),
    Change("method", FINETUNE_JOB, {"spec.method.lora.rank": 16}, _cannot("method")),
    Change("target modules", FINETUNE_JOB, {"spec.method.lora.targetModules": ["v_proj"]}, _cannot("method")),
    Change("training", FINETUNE_JOB, {"spec.training.learningRate": 0.1}, _cannot("training")),
    Change(
        "preference", FINETUNE_JOB, {"spec.objective": "dpo", "spec.preference": {"beta": 0.2}}, _cannot("preference")
    ),
    Change(
        "selectBest", FINETUNE_JOB, {"spec.evaluation": {"everySteps": 1, "selectBest": True}}, _cannot("evaluation")
    ),
    Change("gpusPerNode", FINETUNE_JOB, {"spec.resources.gpusPerNode": 2}, _cannot("resources.gpusPerNode")),
    Change("limits", FINETUNE_JOB, {"spec.resources.limits": {"memory": "1Gi"}}, _cannot("resources.limits")),
    Change("image", FINETUNE_JOB, {"spec.podTemplate.image": "other"}, _cannot("podTemplate")),
    Change("volumes", FINETUNE_JOB, {"spec.podTemplate.volumes": [EMPTY]}, _cannot("podTemplate")),
    Change("gate", FINETUNE_JOB, {"spec.evaluation.gate": {"max": 1, "metric": "loss"}}, _cannot("evaluation")),
    Change("checkpoints", FINETUNE_JOB, {"spec.checkpoint.keep": 5}, _cannot("checkpoint")),
    Change("trackers", FINETUNE_JOB, {"spec.tracking.mlflow": {"uri": "http://mlflow"}}, _cannot("tracking")),
    Change("merged model", FINETUNE_JOB, {"spec.output.mergedModel": True}, _cannot("output.mergedModel")),
    Change("a Secret", FINETUNE_JOB, {"spec.output.secretRef": {"name": "other"}}, _cannot("output.secretRef")),
    Change("a Secret of the model", FINETUNE_JOB, {"spec.model.secretRef": {"name": "other"}}, _cannot("model")),
    Change("output", FINETUNE_JOB, {"spec.output.s3.bucket": "others"}, _cannot("output.s3")),
    Change(
        "traffic",
        ADAPTER_DEPLOYMENT,
        {
            "spec.strategy.canary": {
                "steps": [{"trafficPercent": 5}],
                "traffic": {"inferenceModelRewrite": {"poolRef": {"name": "pool"}}},
            }
        },
        TRAFFIC_IS_KEPT,
    ),
    Change("servedName", ADAPTER_DEPLOYMENT, {"spec.servedName": "other"}, "servedName cannot be changed"),
    Change(
        "target",
        ADAPTER_DEPLOYMENT,
        {"spec.target.deploymentRef.name": "other"},
        "the workload of target cannot be changed",
    ),
    Change(
        "kind of the target",
        ADAPTER_DEPLOYMENT,
        {"spec.target": {"selector": {"matchLabels": {"app": "vllm"}}}},
        "the workload of target cannot be changed",
    ),
]
every_change = pytest.mark.parametrize("change", CHANGES, ids=[change.name for change in CHANGES])
