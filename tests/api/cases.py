"""Wrong files and the message for each: one table for the API server and for the models, which must agree."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.adapterdeployment.spec import EMPTY_SELECTOR, FOLLOWS_NEWEST, ONE_SOURCE, WRONG_VALUES
from finetune_api.combinations.evaluation import (
    COMPARED_ALONE,
    COMPARED_WITH_ITSELF,
    NO_EVALUATIONS,
    NO_FULL_SCORES,
    NO_PERPLEXITY,
    NO_SAME_BUDGET,
    NO_TEXTS,
    NOTHING_TO_SELECT,
    ONE_INTERVAL,
    ONE_RHYTHM,
)
from finetune_api.combinations.method import (
    MERGED_FULL,
    MERGED_PROMPT,
    PACKED_PROMPT,
    RECOMPUTED_PREFIX,
    SHARDED,
    STARTED_INCOMPLETE,
    STARTED_WITH_INIT,
)
from finetune_api.combinations.objective import (
    KTO_BATCH,
    LABELS,
    NO_MERGED_SCORES,
    NO_PACKING,
    NO_PAIRS,
    NO_PREFERENCE,
    NO_PROMPTS,
    ONE_ADAPTER,
    PAIRS,
    SCORES,
)
from finetune_api.core_v1.environment import ONE_VALUE, RESERVED_VARIABLE, EnvFromSource, EnvVarSource
from finetune_api.core_v1.volumes import ONE_SOURCE as ONE_VOLUME_SOURCE
from finetune_api.core_v1.volumes import RESERVED_MOUNT, RESERVED_VOLUME, VolumeProjection
from finetune_api.dataset import HUB_ONLY, TEMPLATE_OR_FORMAT
from finetune_api.finetunejob.editable import IMMUTABLE
from finetune_api.finetunejob.pod import ARGS_ALONE, REQUEST_ABOVE_LIMIT, UNKNOWN_VOLUME
from finetune_api.gate import NO_LIMIT
from finetune_api.methods.adalora import RANKS_FALL
from finetune_api.methods.lora import EVEN_RANK, PLAIN_LORA_ONLY
from finetune_api.methods.lycoris import FACTOR_NOT_ZERO
from finetune_api.methods.method import ONE_METHOD
from finetune_api.methods.prompts import TEXT_WITH_ITS_INIT, WIDTH_NEEDS_PROJECTION
from finetune_api.scheduler import describe_unused
from tests.api.objects import ADAPTER_DEPLOYMENT, DIGEST, FINETUNE_JOB, REMOVE, Object, changed


@dataclass(frozen=True)
class Case:
    """A wrong object: the server's words and, if they differ, the models'."""

    name: str
    item: Object
    changes: dict[str, Any]
    field: str
    """Path of the field that must be named."""
    server: str
    """What `kubectl apply` must say."""
    models: str = ""
    """What `finetune render` must say, if it is not the same."""

    @property
    def wrong(self) -> Object:
        """The object."""
        return changed(self.item, self.changes)


def _job(name: str, changes: dict[str, Any], path: str, server: str, models: str = "") -> Case:
    return Case(name, FINETUNE_JOB, changes, path, server, models)


def _adapter(name: str, changes: dict[str, Any], path: str, server: str, models: str = "") -> Case:
    return Case(name, ADAPTER_DEPLOYMENT, changes, path, server, models)


BOTH_LENGTHS = "epochs and maxSteps are both set: remove one of them"
STARTED = {"uri": "s3://adapters/first"}
REVISION = "revision belongs to hf:// models only: remove it, or name the model on the hub"
CACHE = "cache is for models that are downloaded, hf:// and s3://: remove it, a pvc:// model is on a volume already"
ONE_CACHE = "exactly one of persistentVolumeClaim and hostPath must be set"
ONE_VALIDATION = "exactly one of uri, fraction and split must be set"
ONE_TEMPLATE = "exactly one of text and the pair of prompt and completion must be set"
URI_NEEDS_DIGEST = "uri needs digest: an adapter is pinned by the sha256 of its manifest.json"
S3_AND_URI = "s3 belongs to uri: remove it, because a FineTuneJob names its own S3 service"
TEMPLATE = "spec.podTemplate"
EMPTY = {"name": "a", "emptyDir": {}}
METRIC = "spec.evaluation.gate.metric"
S3_ADAPTER = {"uri": "s3://adapters/a", "digest": DIGEST}

CASES = [
    _job("unknown field", {"spec.method.lora.ranks": 8}, "spec.method.lora.ranks", "unknown field"),
    _job(
        "wrong enum",
        {"spec.training.precision": "int8"},
        "spec.training.precision",
        'supported values: "auto", "bf16", "fp16", "fp32"',
        "'auto', 'bf16', 'fp16' or 'fp32'",
    ),
    _job("rank 0", {"spec.method.lora.rank": 0}, "spec.method.lora.rank", "greater than or equal to 1"),
    _job("rank too high", {"spec.method.lora.rank": 513}, "spec.method.lora.rank", "less than or equal to 512"),
    _job(
        "dropout of one",
        {"spec.method.lora.dropout": 1.0},
        "spec.method.lora.dropout",
        "should be less than 1",
        "less than 1",
    ),
    _job("a seed of 33 bits", {"spec.training.seed": 2**32}, "spec.training.seed", "less than or equal to 4294967295"),
    _job(
        "a length beyond 32 bits",
        {"spec.training.maxLength": 2**31},
        "spec.training.maxLength",
        "less than or equal to 2147483647",
    ),
    _job("epochs and maxSteps", {"spec.training.epochs": 1}, "spec.training", BOTH_LENGTHS),
    _job("two methods", {"spec.method.qlora": {}}, "spec.method", ONE_METHOD),
    _job(
        "an odd rank for orthogonal matrices",
        {"spec.method": {"lora": {"rank": 5, "init": "orthogonal"}}},
        "spec.method.lora",
        EVEN_RANK,
    ),
    _job(
        "loftq without a quantised base",
        {"spec.method.lora.init": "loftq"},
        "spec.method.lora.init",
        "supported values",
        "'default', 'gaussian'",
    ),
    _job("a rank that rises", {"spec.method": {"adalora": {"initRank": 4}}}, "spec.method.adalora", RANKS_FALL),
    _job("no factor", {"spec.method": {"lokr": {"decomposeFactor": 0}}}, "spec.method.lokr", FACTOR_NOT_ZERO),
    _job(
        "a network that is not used",
        {"spec.method": {"prefixTuning": {"encoderHiddenSize": 8}}},
        "spec.method.prefixTuning",
        WIDTH_NEEDS_PROJECTION,
    ),
    _job(
        "a text that is not used",
        {"spec.method": {"promptTuning": {"promptTuningInitText": "Hello"}}},
        "spec.method.promptTuning",
        TEXT_WITH_ITS_INIT,
    ),
    _job(
        "no text to begin with",
        {"spec.method": {"promptTuning": {"promptTuningInit": "text"}}},
        "spec.method.promptTuning",
        TEXT_WITH_ITS_INIT,
    ),
    _job("packed prompts", {"spec.method": {"pTuning": {}}, "spec.training.packing": True}, "spec", PACKED_PROMPT),
    _job(
        "packed prompts by PEFT's name",
        {"spec.method": {"peft": {"type": "P_TUNING"}}, "spec.training.packing": True},
        "spec",
        PACKED_PROMPT,
    ),
    _job(
        "a prefix that is computed twice",
        {"spec.method": {"prefixTuning": {}}, "spec.training.gradientCheckpointing": "always"},
        "spec",
        RECOMPUTED_PREFIX,
    ),
    _job(
        "a merged prompt", {"spec.method": {"promptTuning": {}}, "spec.output.mergedModel": True}, "spec", MERGED_PROMPT
    ),
    _job("a merged model", {"spec.method": {"full": {}}, "spec.output.mergedModel": True}, "spec", MERGED_FULL),
    _job(
        "an adapter to train whole",
        {"spec.method": {"full": {}}, "spec.model.adapter": STARTED},
        "spec",
        STARTED_INCOMPLETE,
    ),
    _job(
        "two beginnings",
        {"spec.method": {"lora": {"init": "pissa"}}, "spec.model.adapter": STARTED},
        "spec",
        STARTED_WITH_INIT,
    ),
    _job(
        "a beginning beside trained modules",
        {"spec.method": {"lora": {"init": "olora", "modulesToSave": ["lm_head"]}}},
        "spec.method.lora",
        PLAIN_LORA_ONLY,
    ),
    _job("no method in the choice", {"spec.method.lora": REMOVE}, "spec.method", ONE_METHOD),
    _job(
        "revision of an s3 model",
        {"spec.model": {"uri": "s3://models/base", "revision": "main"}},
        "spec.model",
        REVISION,
    ),
    _job(
        "a cache of a model on a claim",
        {"spec.model": {"uri": "pvc://models/base", "cache": {"hostPath": {"path": "/mnt/models"}}}},
        "spec.model",
        CACHE,
    ),
    _job("an empty cache", {"spec.model.cache": {}}, "spec.model.cache", ONE_CACHE),
    _job(
        "two kinds of validation",
        {"spec.dataset.validation": {"uri": "s3://a/b", "fraction": 0.1}},
        "spec.dataset.validation",
        ONE_VALIDATION,
    ),
    _job("empty validation", {"spec.dataset.validation": {}}, "spec.dataset.validation", ONE_VALIDATION),
    _job("a split of a file", {"spec.dataset.split": "train"}, "spec.dataset", HUB_ONLY),
    _job("a held-out split of a file", {"spec.dataset.validation": {"split": "test"}}, "spec.dataset", HUB_ONLY),
    _job(
        "a template and a format",
        {"spec.dataset.template": {"text": "{{ a }}"}, "spec.dataset.format": "text"},
        "spec.dataset",
        TEMPLATE_OR_FORMAT,
    ),
    _job(
        "two templates",
        {"spec.dataset.template": {"text": "a", "prompt": "b", "completion": "c"}},
        "spec.dataset.template",
        ONE_TEMPLATE,
    ),
    _job("half a template", {"spec.dataset.template": {"prompt": "b"}}, "spec.dataset.template", ONE_TEMPLATE),
    _job(
        "a file of a workstation",
        {"spec.dataset.uri": "file:///data/rows.jsonl"},
        "spec.dataset.uri",
        "should match",
        "for a cluster put the data into s3://",
    ),
    _job(
        "a bucket for a dataset", {"spec.dataset.uri": "s3://data"}, "spec.dataset.uri", "should match", "names no file"
    ),
    _job("preferences without their objective", {"spec.preference": {"beta": 0.2}}, "spec", NO_PREFERENCE),
    _job("packed pairs", {"spec.objective": "dpo", "spec.training.packing": True}, "spec", NO_PACKING),
    _job("kto one row at a time", {"spec.objective": "kto"}, "spec", KTO_BATCH),
    _job(
        "dpo with a method of one adapter",
        {"spec.objective": "dpo", "spec.method": {"adalora": {}}},
        "spec",
        ONE_ADAPTER,
    ),
    _job(
        "dpo with an initialisation that changes the base",
        {"spec.objective": "dpo", "spec.method.lora.init": "pissa"},
        "spec",
        ONE_ADAPTER,
    ),
    _job("orpo with a learned prompt", {"spec.objective": "orpo", "spec.method": {"pTuning": {}}}, "spec", NO_PROMPTS),
    _job(
        "reward with a method without a head", {"spec.objective": "reward", "spec.method": {"ia3": {}}}, "spec", SCORES
    ),
    _job("reward, merged", {"spec.objective": "reward", "spec.output.mergedModel": True}, "spec", NO_MERGED_SCORES),
    _job("dpo from chats", {"spec.objective": "dpo", "spec.dataset.format": "messages"}, "spec", PAIRS),
    _job("orpo from a template", {"spec.objective": "orpo", "spec.dataset.template": {"text": "a"}}, "spec", PAIRS),
    _job("pairs without their objective", {"spec.dataset.format": "preference"}, "spec", NO_PAIRS),
    _job(
        "kto from texts",
        {"spec.objective": "kto", "spec.dataset.format": "text", "spec.training.perDeviceBatchSize": 2},
        "spec",
        LABELS,
    ),
    _job(
        "an objective that TRL has and we do not",
        {"spec.objective": "grpo"},
        "spec.objective",
        'values: "sft", "dpo", "kto", "orpo"',
        "'orpo' or 'reward'",
    ),
    _job("no bucket", {"spec.output.s3": {}}, "spec.output.s3.bucket", "Required value", "Field required"),
    _job(
        "a hub's repository without its owner",
        {"spec.output.hub": {"repo": "adapter", "secretRef": {"name": "hub"}}},
        "spec.output.hub.repo",
        "should match",
    ),
    _job(
        "a hub without a token",
        {"spec.output.hub": {"repo": "org/adapter"}},
        "spec.output.hub.secretRef",
        "Required value",
        "Field required",
    ),
    _job(
        "an MLflow server without a scheme",
        {"spec.tracking": {"mlflow": {"uri": "mlflow:5000"}}},
        "spec.tracking.mlflow.uri",
        "should match",
    ),
    _job(
        "Weights & Biases without a key",
        {"spec.tracking": {"wandb": {"project": "a"}}},
        "spec.tracking.wandb.secretRef",
        "Required value",
        "Field required",
    ),
    _job(
        "too many samples", {"spec.evaluation": {"samples": 21}}, "spec.evaluation.samples", "less than or equal to 20"
    ),
    _job("a gate without a limit", {"spec.evaluation": {"gate": {"metric": "loss"}}}, "spec.evaluation.gate", NO_LIMIT),
    _job(
        "a gate on what is not measured",
        {"spec.evaluation": {"gate": {"metric": "f1", "max": 1}}},
        METRIC,
        'values: "loss", "perplexity"',
        "'loss' or 'perplexity'",
    ),
    _job(
        "a gate on the perplexity of preferences",
        {"spec.objective": "orpo", "spec.evaluation": {"gate": {"metric": "perplexity", "max": 9}}},
        "spec",
        NO_PERPLEXITY,
    ),
    _job("an early stop without evaluations", {"spec.training.earlyStopping": {"patience": 2}}, "spec", NO_EVALUATIONS),
    _job(
        "no patience",
        {"spec.training.earlyStopping": {"patience": 0}},
        "spec.training.earlyStopping.patience",
        "greater than or equal to 1",
    ),
    _job("evaluations in two rhythms", {"spec.evaluation": {"everySteps": 1, "everyEpoch": True}}, "spec", ONE_RHYTHM),
    _job(
        "checkpoints in two intervals", {"spec.checkpoint": {"everySteps": 1, "everyMinutes": 5}}, "spec", ONE_INTERVAL
    ),
    *(
        _job(
            f"{setting} of another schedule",
            {"spec.training.schedulerArgs": {setting: value}},
            "spec.training",
            describe_unused(setting),
        )
        for setting, value in {"numCycles": 2, "power": 2, "minLearningRateRatio": 0.1, "decayRatio": 0.1}.items()
    ),
    _job("the best of no evaluations", {"spec.evaluation": {"selectBest": True}}, "spec", NOTHING_TO_SELECT),
    _job(
        "forgetting of a model without texts",
        {"spec.objective": "reward", "spec.evaluation": {"forgetting": {}}},
        "spec",
        NO_TEXTS,
    ),
    _job(
        "full fine-tuning compared with itself",
        {"spec.method": {"full": {}}, "spec.evaluation": {"compareWithFull": True}},
        "spec",
        COMPARED_WITH_ITSELF,
    ),
    _job(
        "full fine-tuning of a reward model",
        {"spec.objective": "reward", "spec.evaluation": {"compareWithFull": True}},
        "spec",
        NO_FULL_SCORES,
    ),
    _job(
        "a comparison with less training",
        {"spec.model.adapter": STARTED, "spec.evaluation": {"compareWithFull": True}},
        "spec",
        NO_SAME_BUDGET,
    ),
    _job(
        "a comparison on two GPUs",
        {"spec.resources": {"gpusPerNode": 2}, "spec.evaluation": {"compareWithFull": True}},
        "spec",
        COMPARED_ALONE,
    ),
    _job(
        "a dataset for a general text",
        {"spec.evaluation": {"forgetting": {"uri": "hf://a/b"}}},
        "spec.evaluation.forgetting.uri",
        "should match",
        "is a file",
    ),
    _job(
        "an address of no known kind",
        {"spec.model.uri": "https://example.com/model"},
        "spec.model.uri",
        "should match",
        "has the unknown scheme 'https'",
    ),
    _job("args without a command", {"spec.podTemplate": {"args": ["a"]}}, TEMPLATE, ARGS_ALONE),
    _job(
        "a mount of no volume",
        {"spec.podTemplate": {"volumeMounts": [{"name": "a", "mountPath": "/a"}]}},
        TEMPLATE,
        UNKNOWN_VOLUME,
    ),
    _job(
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
    _job(
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
    _job(
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
    _job("two volumes of one name", {"spec.podTemplate": {"volumes": [EMPTY, EMPTY]}}, TEMPLATE, "Duplicate value"),
    _job(
        "a variable twice",
        {"spec.podTemplate": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
        f"{TEMPLATE}.env",
        "Duplicate value",
    ),
    _job(
        "a volume with our name",
        {"spec.podTemplate": {"volumes": [{"name": "finetune-tmp", "emptyDir": {}}]}},
        f"{TEMPLATE}.volumes[0]",
        RESERVED_VOLUME,
    ),
    _job(
        "a volume of nothing",
        {"spec.podTemplate": {"volumes": [{"name": "a"}]}},
        f"{TEMPLATE}.volumes[0]",
        ONE_VOLUME_SOURCE["message"],
    ),
    _job(
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
    _job(
        "a volume that pods do not have",
        {"spec.podTemplate": {"volumes": [{"name": "a", "gitRepo": {"repository": "x"}}]}},
        f"{TEMPLATE}.volumes[0].gitRepo",
        "unknown field",
    ),
    _job(
        "our variable",
        {"spec.podTemplate": {"env": [{"name": "FINETUNE_JOB", "value": "{}"}]}},
        f"{TEMPLATE}.env[0]",
        RESERVED_VARIABLE,
    ),
    _job(
        "a value from two places",
        {
            "spec.podTemplate": {
                "env": [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
            }
        },
        f"{TEMPLATE}.env[0]",
        ONE_VALUE,
    ),
    _job(
        "a value from nowhere",
        {"spec.podTemplate": {"env": [{"name": "A", "valueFrom": {}}]}},
        f"{TEMPLATE}.env[0].valueFrom",
        EnvVarSource.cel_rules[0]["message"],
    ),
    _job(
        "variables from nowhere",
        {"spec.podTemplate": {"envFrom": [{"prefix": "A_"}]}},
        f"{TEMPLATE}.envFrom[0]",
        EnvFromSource.cel_rules[0]["message"],
    ),
    _job(
        "a misspelt affinity",
        {"spec.podTemplate": {"affinity": {"nodeAffinity": {"requiredDuringScheduling": {}}}}},
        f"{TEMPLATE}.affinity.nodeAffinity.requiredDuringScheduling",
        "unknown field",
    ),
    _job(
        "memory in words",
        {"spec.resources": {"limits": {"memory": "32 GB"}}},
        "spec.resources.limits",
        "should match",
        "is not a quantity",
    ),
    _job(
        "a request above its limit",
        {"spec.resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "2G"}}},
        "spec.resources",
        REQUEST_ABOVE_LIMIT,
    ),
    _job("sharding on one GPU", {"spec.training.sharding": "full"}, "spec", SHARDED),
    _job(
        "sharding of a base in 4 bits",
        {"spec.training.sharding": "full", "spec.resources.gpusPerNode": 2, "spec.method": {"qlora": {}}},
        "spec",
        SHARDED,
    ),
    _job(
        "more GPUs than a node has",
        {"spec.resources.gpusPerNode": 32},
        "spec.resources.gpusPerNode",
        "less than or equal to 16",
    ),
    _adapter(
        "a job and an address",
        {"spec.adapter": {"fineTuneJobRef": {"name": "a"}, **S3_ADAPTER}},
        "spec.adapter",
        ONE_SOURCE,
    ),
    _adapter("no adapter", {"spec.adapter": {}}, "spec.adapter", ONE_SOURCE),
    _adapter(
        "a selector that chooses everything",
        {"spec.adapter": {"selector": {"matchLabels": {}}}},
        "spec.adapter",
        EMPTY_SELECTOR,
    ),
    _adapter(
        "a selector with an operator that lacks values",
        {"spec.adapter": {"selector": {"matchExpressions": [{"key": "app", "operator": "In"}]}}},
        "spec.adapter",
        WRONG_VALUES,
    ),
    _adapter(
        "a selector with a digest",
        {"spec.adapter": {"selector": {"matchLabels": {"app": "a"}}, "digest": S3_ADAPTER["digest"]}},
        "spec.adapter",
        FOLLOWS_NEWEST,
    ),
    _adapter(
        "an address without a digest", {"spec.adapter": {"uri": "s3://adapters/a"}}, "spec.adapter", URI_NEEDS_DIGEST
    ),
    _adapter("an object store without an address", {"spec.adapter.s3": {"region": "eu-1"}}, "spec.adapter", S3_AND_URI),
    _adapter(
        "a digest that is none",
        {"spec.adapter": {**S3_ADAPTER, "digest": "sha256:12"}},
        "spec.adapter.digest",
        "should match",
    ),
    _adapter(
        "an unknown engine", {"spec.target.engine": "tgi"}, "spec.target.engine", 'supported values: "vllm"', "'vllm'"
    ),
    _adapter("no served name", {"spec.servedName": REMOVE}, "spec.servedName", "Required value", "Field required"),
    _adapter(
        "no pod may be away",
        {"spec.strategy.maxUnavailable": 0},
        "spec.strategy.maxUnavailable",
        "greater than or equal to 1",
    ),
    _adapter("no tolerance", {"spec.verification.tolerance": 0}, "spec.verification.tolerance", "greater than 0"),
]

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


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
    Change("gpusPerNode", FINETUNE_JOB, {"spec.resources.gpusPerNode": 2}, _cannot("resources")),
    Change("limits", FINETUNE_JOB, {"spec.resources.limits": {"memory": "1Gi"}}, _cannot("resources")),
    Change("image", FINETUNE_JOB, {"spec.podTemplate.image": "other"}, _cannot("podTemplate")),
    Change("volumes", FINETUNE_JOB, {"spec.podTemplate.volumes": [EMPTY]}, _cannot("podTemplate")),
    Change("gate", FINETUNE_JOB, {"spec.evaluation.gate": {"max": 1, "metric": "loss"}}, _cannot("evaluation")),
    Change("checkpoints", FINETUNE_JOB, {"spec.checkpoint.keep": 5}, _cannot("checkpoint")),
    Change("trackers", FINETUNE_JOB, {"spec.tracking.mlflow": {"uri": "http://mlflow"}}, _cannot("tracking")),
    Change("merged model", FINETUNE_JOB, {"spec.output.mergedModel": True}, _cannot("output.mergedModel")),
    Change("a Secret", FINETUNE_JOB, {"spec.output.secretRef": {"name": "other"}}, _cannot("output.secretRef")),
    Change("a Secret of the model", FINETUNE_JOB, {"spec.model.secretRef": {"name": "other"}}, _cannot("model")),
    Change("output", FINETUNE_JOB, {"spec.output.s3.bucket": "others"}, _cannot("output.s3")),
    Change("servedName", ADAPTER_DEPLOYMENT, {"spec.servedName": "other"}, "servedName cannot be changed"),
    Change(
        "target",
        ADAPTER_DEPLOYMENT,
        {"spec.target.deploymentRef.name": "other"},
        "target.deploymentRef cannot be changed",
    ),
]
every_change = pytest.mark.parametrize("change", CHANGES, ids=[change.name for change in CHANGES])
