"""Wrong pod templates and resources."""

from finetune_api.combinations.method import (
    SHARDED,
)
from finetune_api.core_v1.environment import ONE_VALUE, RESERVED_VARIABLE, EnvFromSource, EnvVarSource
from finetune_api.core_v1.volumes import ONE_SOURCE as ONE_VOLUME_SOURCE
from finetune_api.core_v1.volumes import RESERVED_MOUNT, RESERVED_VOLUME, VolumeProjection
from finetune_api.finetunejob.pod import ARGS_ALONE, GPU_RULES, REQUEST_ABOVE_LIMIT, UNKNOWN_VOLUME
from tests.api.case import EMPTY, TEMPLATE, of_job

POD_CASES = [
    of_job("args without a command", {"spec.podTemplate": {"args": ["a"]}}, TEMPLATE, ARGS_ALONE),
    of_job(
        "a mount of no volume",
        {"spec.podTemplate": {"volumeMounts": [{"name": "a", "mountPath": "/a"}]}},
        TEMPLATE,
        UNKNOWN_VOLUME,
    ),
    of_job(
        "a mount among ours",
        {
            "spec.podTemplate": {
                "volumes": [EMPTY],
                "volumeMounts": [{"name": "a", "mountPath": "/etc/finetune/secrets"}],
            }
        },
        f"{TEMPLATE}.volumeMounts[0]",
        RESERVED_MOUNT,
    ),
    of_job(
        "a mount that climbs",
        {
            "spec.podTemplate": {
                "volumes": [EMPTY],
                "volumeMounts": [{"name": "a", "mountPath": "/etc/../etc/finetune"}],
            }
        },
        f"{TEMPLATE}.volumeMounts[0].mountPath",
        "should match",
    ),
    of_job(
        "two mounts at one path",
        {
            "spec.podTemplate": {
                "volumes": [EMPTY],
                "volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "a", "mountPath": "/a"}],
            }
        },
        f"{TEMPLATE}.volumeMounts",
        "Duplicate value",
    ),
    of_job("two volumes of one name", {"spec.podTemplate": {"volumes": [EMPTY, EMPTY]}}, TEMPLATE, "Duplicate value"),
    of_job(
        "a variable twice",
        {"spec.podTemplate": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
        f"{TEMPLATE}.env",
        "Duplicate value",
    ),
    of_job(
        "a volume with our name",
        {"spec.podTemplate": {"volumes": [{"name": "finetune-tmp", "emptyDir": {}}]}},
        f"{TEMPLATE}.volumes[0]",
        RESERVED_VOLUME,
    ),
    of_job(
        "a volume of nothing",
        {"spec.podTemplate": {"volumes": [{"name": "a"}]}},
        f"{TEMPLATE}.volumes[0]",
        ONE_VOLUME_SOURCE["message"],
    ),
    of_job(
        "a projection of two things",
        {
            "spec.podTemplate": {
                "volumes": [
                    {"name": "a", "projected": {"sources": [{"secret": {"name": "a"}, "configMap": {"name": "b"}}]}}
                ]
            }
        },
        f"{TEMPLATE}.volumes[0].projected.sources[0]",
        VolumeProjection.cel_rules[0]["message"],
    ),
    of_job(
        "a volume that pods do not have",
        {"spec.podTemplate": {"volumes": [{"name": "a", "gitRepo": {"repository": "x"}}]}},
        f"{TEMPLATE}.volumes[0].gitRepo",
        "unknown field",
    ),
    of_job(
        "our variable",
        {"spec.podTemplate": {"env": [{"name": "FINETUNE_JOB", "value": "{}"}]}},
        f"{TEMPLATE}.env[0]",
        RESERVED_VARIABLE,
    ),
    of_job(
        "a value from two places",
        {
            "spec.podTemplate": {
                "env": [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
            }
        },
        f"{TEMPLATE}.env[0]",
        ONE_VALUE,
    ),
    of_job(
        "a value from nowhere",
        {"spec.podTemplate": {"env": [{"name": "A", "valueFrom": {}}]}},
        f"{TEMPLATE}.env[0].valueFrom",
        EnvVarSource.cel_rules[0]["message"],
    ),
    of_job(
        "variables from nowhere",
        {"spec.podTemplate": {"envFrom": [{"prefix": "A_"}]}},
        f"{TEMPLATE}.envFrom[0]",
        EnvFromSource.cel_rules[0]["message"],
    ),
    of_job(
        "a misspelt affinity",
        {"spec.podTemplate": {"affinity": {"nodeAffinity": {"requiredDuringScheduling": {}}}}},
        f"{TEMPLATE}.affinity.nodeAffinity.requiredDuringScheduling",
        "unknown field",
    ),
    of_job(
        "memory in words",
        {"spec.resources": {"limits": {"memory": "32 GB"}}},
        "spec.resources.limits",
        "should match",
        "is not a quantity",
    ),
    of_job(
        "a request above its limit",
        {"spec.resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "2G"}}},
        "spec.resources",
        REQUEST_ABOVE_LIMIT,
    ),
    of_job(
        "GPUs among the limits",
        {"spec.resources": {"limits": {"nvidia.com/gpu": 4}}},
        "spec.resources",
        GPU_RULES[1]["message"],
    ),
    of_job(
        "GPUs among the requests",
        {"spec.resources": {"requests": {"gpusPerNode": 1}}},
        "spec.resources",
        GPU_RULES[0]["message"],
    ),
    of_job(
        "GPUs of another kind among the limits",
        {"spec.resources": {"gpuResourceName": "example.com/gpu", "limits": {"example.com/gpu": 1}}},
        "spec.resources",
        GPU_RULES[1]["message"],
    ),
    of_job("sharding on one GPU", {"spec.training.sharding": "full"}, "spec", SHARDED),
    of_job(
        "sharding of a base in 4 bits",
        {"spec.training.sharding": "full", "spec.resources.gpusPerNode": 2, "spec.method": {"qlora": {}}},
        "spec",
        SHARDED,
    ),
    of_job(
        "more GPUs than a node has",
        {"spec.resources.gpusPerNode": 32},
        "spec.resources.gpusPerNode",
        "less than or equal to 16",
    ),
]
