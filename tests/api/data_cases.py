"""Wrong models, datasets and objectives."""

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
from finetune_api.dataset import HUB_ONLY, TEMPLATE_OR_FORMAT
from tests.api.case import of_job

REVISION = "revision belongs to hf:// models only: remove it, or name the model on the hub"
CACHE = (
    "cache is for models that are downloaded (hf:// and s3://), and a pvc:// model is on a volume already: remove cache"
)
ONE_CACHE = "exactly one of persistentVolumeClaim and hostPath must be set"
ONE_VALIDATION = "exactly one of uri, fraction and split must be set"
ONE_TEMPLATE = "exactly one of text and the pair of prompt and completion must be set"

DATA_CASES = [
    of_job(
        "revision of an s3 model",
        {"spec.model": {"uri": "s3://models/base", "revision": "main"}},
        "spec.model",
        REVISION,
    ),
    of_job(
        "a cache of a model on a claim",
        {"spec.model": {"uri": "pvc://models/base", "cache": {"hostPath": {"path": "/mnt/models"}}}},
        "spec.model",
        CACHE,
    ),
    of_job("an empty cache", {"spec.model.cache": {}}, "spec.model.cache", ONE_CACHE),
    of_job(
        "two kinds of validation",
        {"spec.dataset.validation": {"uri": "s3://a/b", "fraction": 0.1}},
        "spec.dataset.validation",
        ONE_VALIDATION,
    ),
    of_job("empty validation", {"spec.dataset.validation": {}}, "spec.dataset.validation", ONE_VALIDATION),
    of_job("a split of a file", {"spec.dataset.split": "train"}, "spec.dataset", HUB_ONLY),
    of_job("a held-out split of a file", {"spec.dataset.validation": {"split": "test"}}, "spec.dataset", HUB_ONLY),
    of_job(
        "a template and a format",
        {"spec.dataset.template": {"text": "{{ a }}"}, "spec.dataset.format": "text"},
        "spec.dataset",
        TEMPLATE_OR_FORMAT,
    ),
    of_job(
        "two templates",
        {"spec.dataset.template": {"text": "a", "prompt": "b", "completion": "c"}},
        "spec.dataset.template",
        ONE_TEMPLATE,
    ),
    of_job("half a template", {"spec.dataset.template": {"prompt": "b"}}, "spec.dataset.template", ONE_TEMPLATE),
    of_job(
        "a file of a workstation",
        {"spec.dataset.uri": "file:///data/rows.jsonl"},
        "spec.dataset.uri",
        "should match",
        "for a cluster put the data into s3://",
    ),
    of_job(
        "a bucket for a dataset", {"spec.dataset.uri": "s3://data"}, "spec.dataset.uri", "should match", "names no file"
    ),
    of_job("preferences without their objective", {"spec.preference": {"beta": 0.2}}, "spec", NO_PREFERENCE),
    of_job("packed pairs", {"spec.objective": "dpo", "spec.training.packing": True}, "spec", NO_PACKING),
    of_job(
        "kto one row at a time",
        {"spec.objective": "kto", "spec.training.perDeviceBatchSize": 1},
        "spec",
        KTO_BATCH,
    ),
    of_job(
        "kto on the CPU with its default batch",
        {"spec.objective": "kto", "spec.resources.gpusPerNode": 0},
        "spec",
        KTO_BATCH,
    ),
    of_job(
        "dpo with a method of one adapter",
        {"spec.objective": "dpo", "spec.method": {"adalora": {}}},
        "spec",
        ONE_ADAPTER,
    ),
    of_job(
        "dpo with an initialisation that changes the base",
        {"spec.objective": "dpo", "spec.method.lora.init": "pissa"},
        "spec",
        ONE_ADAPTER,
    ),
    of_job(
        "orpo with a learned prompt", {"spec.objective": "orpo", "spec.method": {"pTuning": {}}}, "spec", NO_PROMPTS
    ),
    of_job(
        "reward with a method without a head", {"spec.objective": "reward", "spec.method": {"ia3": {}}}, "spec", SCORES
    ),
    of_job("reward, merged", {"spec.objective": "reward", "spec.output.mergedModel": True}, "spec", NO_MERGED_SCORES),
    of_job("dpo from chats", {"spec.objective": "dpo", "spec.dataset.format": "messages"}, "spec", PAIRS),
    of_job("orpo from a template", {"spec.objective": "orpo", "spec.dataset.template": {"text": "a"}}, "spec", PAIRS),
    of_job("pairs without their objective", {"spec.dataset.format": "preference"}, "spec", NO_PAIRS),
    of_job(
        "kto from texts",
        {"spec.objective": "kto", "spec.dataset.format": "text", "spec.training.perDeviceBatchSize": 2},
        "spec",
        LABELS,
    ),
    of_job(
        "an objective that TRL has and we do not",
        {"spec.objective": "grpo"},
        "spec.objective",
        'values: "sft", "dpo", "kto", "orpo"',
        "'orpo' or 'reward'",
    ),
    of_job(
        "an address of no known kind",
        {"spec.model.uri": "https://example.com/model"},
        "spec.model.uri",
        "should match",
        "has the unknown scheme 'https'",
    ),
    *(
        of_job(f"no address of a model: {uri}", {"spec.model.uri": uri}, "spec.model.uri", "should match", words)
        for uri, words in {
            "hf://org/m@v1": "write uri: hf://org/m and revision: v1",
            "hf://org/m:main": "write uri: hf://org/m and revision: main",
            "hf://org/m/tree/main": "write uri: hf://org/m and revision: main",
            "hf://org/m?rev=1": "write uri: hf://org/m and revision: 1",
            "hf://org/m/x": "write hf://org/m without /x",
            "hf://org/my model": "write hf://org/name",
            "hf://<org>/m": "write hf://org/name",
            "hf://${MODEL}": "write hf://org/name",
            "s3://key:secret@b/d": "is not the address of a model",
        }.items()
    ),
    *(
        of_job(f"no address of data: {uri}", {"spec.dataset.uri": uri}, "spec.dataset.uri", "should match", words)
        for uri, words in {
            "hf://org/d@v1": "write uri: hf://org/d and revision: v1",
            "hf://org/d/tree/main": "write uri: hf://org/d and revision: main",
            "s3://key:secret@b/d": "is not the address of data",
        }.items()
    ),
]
