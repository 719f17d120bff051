"""What ``finetune validate`` says about single fields: the remedy must be right where it is written."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from finetune_api.offline import SPECS, schema_of, validate
from finetune_api.structural import matches

JOB = {
    "model": {"uri": "hf://org/m"},
    "dataset": {"uri": "s3://b/d.jsonl"},
    "output": {"s3": {"bucket": "adapters"}},
}
DEPLOYMENT = {
    "adapter": {"fineTuneJobRef": {"name": "x"}},
    "servedName": "bot",
    "target": {"deploymentRef": {"name": "vllm"}},
}


MODELS = (
    "hf://gpt2", "hf://org/m/", "hf://Org-1/m_2.b", "s3://b", "s3://b/", "s3://b/a b/ö@1:x?/", "pvc://c",
    "pvc://c/a//b.c/..d/",
)  # fmt: skip
DATASETS = (
    "hf://squad", "hf://org/d", "s3://b/a b=1/*.jsonl", "s3://b/a@b:c", "pvc://c/.hidden/rows",
    "configmap://c/rows.jsonl",
)  # fmt: skip


def merge(old: Any, new: Any) -> Any:
    """Return a mapping with the fields of another one in it."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{name: merge(old.get(name), value) for name, value in new.items()}}


def said(text: str, kind: str = "FineTuneJob") -> str:
    """Return the problems of an object with these lines below ``spec:``."""
    spec = merge(JOB if kind == "FineTuneJob" else DEPLOYMENT, yaml.safe_load(text))
    metadata = {"name": "a"}
    item = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    return "\n".join(str(problem) for problem in validate(item)[1])


def fields(schema: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield each pattern of a schema, with the path of a field that has it."""
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"], name
        for key, part in schema.items():
            yield from fields(part, f"{name}.{key}")
    elif isinstance(schema, list):
        for part in schema:
            yield from fields(part, name)


PATTERNS = {pattern: name for kind in SPECS for pattern, name in fields(schema_of(kind))}
STARTS = (
    "",
    "/",
    "a",
    "/a/",
    "s3://b/",
    "hf://",
    "hf://a/",
    "pvc://c/",
    "http://a",
    "configmap://a/",
    "sha256:",
    "1",
    "a/",
)
PARTS = ("a", "/a", "a.", "a-", "0", ".", "/", "a/", "-", "_", "/.a", "a/b.c-d/", "/language-models", ":", "\\w+")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_long_near_miss_of_a_pattern_takes_no_time(pattern: str) -> None:
    begin = time.process_time()
    for start in STARTS:
        for part in PARTS:
            for end in ("", "/", "\n", ":", "!", "//", "/.."):
                matches(start + part * (400 // len(part)) + end, pattern)
            assert time.process_time() - begin < 5, (start, part)


def test_a_path_has_no_empty_part_and_does_not_climb() -> None:
    segment = "^(/[^/:]*[^/:.][^/:]*)+$"
    named = fields(schema_of("FineTuneJob"))
    (pattern,) = {pattern for pattern, name in named if name.endswith("hostPath.properties.path")}
    for text in (
        "/a",
        "/a/b",
        "/.a",
        "/..a",
        "/a..",
        "/...",
        "/..",
        "/.",
        "/a/..",
        "/a//b",
        "/a/",
        "a",
        "",
        "/a:b",
        "/a/.b.c",
    ):
        assert matches(text, pattern) == bool(re.search(segment, text)), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # numbers and their units
        ("training: {learningRate: 1.2.3%}", "must be a number, found the string '1.2.3%'"),
        ("training: {maxSteps: 1.2.3k}", "must be a whole number, found the string '1.2.3k'"),
        ("training: {maxSteps: 1.5k}", "write 1500"),
        ("training: {maxSteps: 0.5}", "found the number 0.5: write 1"),
        ("training: {maxSteps: 2.5}", "found the number 2.5: write 2 or 3"),
        ("training: {maxSteps: 1.0e+30}", "found the number 1e+30: write a whole number of at least 1 and at most"),
        ("training: {learningRate: 5%}", "write 0.05"),
        ("evaluation: {gate: {minImprovementPercent: 5%}}", "found the string '5%': write 5"),
        ("activeDeadlineSeconds: 12h", "write 43200"),
        ("activeDeadlineSeconds: 1d", "write 86400"),
        ("activeDeadlineSeconds: 1h30m", "write 5400"),
        ("resources: {requests: {memory: .5Gi}}", "found '.5Gi': write 0.5Gi"),
        # what is off
        ("failurePolicy: {outOfMemory: false}", "write outOfMemory: {"),
        ("checkpoint: false", "found false: it cannot be turned off; it has the fields everySteps"),
        ("evaluation: {gate: false}", "found false: remove gate"),
        ("training: {earlyStopping: false}", "found false: remove earlyStopping"),
        ("dataset: {validation: false}", "it cannot be turned off; it has the fields uri, fraction and split"),
        # what is on
        ("training: {earlyStopping: true}", "write earlyStopping: {patience: …}"),
        ("evaluation: {gate: true}", "write gate: {metric: …} (it has the fields metric"),
        ("tracking: wandb", "write tracking: {wandb: {project: …, secretRef: {name: …}}}"),
        ("checkpoint: true", "write checkpoint: {} for its defaults"),
        ("method: qlora", "write method: {qlora: {}}"),
        # an address in place of an object
        ("model: s3://models/llama", "write model: {uri: s3://models/llama}"),
        ("dataset: s3://b/d.jsonl", "write dataset: {uri: s3://b/d.jsonl}"),
        ("output: s3://models/llama", "write output: {s3: {bucket: models, prefix: llama}}"),
        ("model: {adapter: s3://a/b}", "write adapter: {uri: s3://a/b}"),
        ("dataset: imdb", "write dataset: {uri: hf://imdb}"),
        ("dataset: {template: '{{ prompt }}'}", "write template: {text: '{{ prompt }}'}"),
        ("podTemplate: {command: python train.py 'a b'}", "write command: [python, train.py, 'a b']"),
        # other names
        *((f"dataset: {{{name}: a}}", f".{name}: unknown field: write uri") for name in ("path", "url", "id", "repo")),
        ("output: {s3: {url: 'http://a'}}", "spec.output.s3.url: unknown field: write endpoint"),
        ("checkpoint: {steps: 10}", "spec.checkpoint.steps: unknown field: write everySteps"),
        ("training: {steps: 10}", "spec.training.steps: unknown field: write maxSteps"),
        ("model: {name: meta-llama/X}", "spec.model.name: unknown field: write uri"),
        ("output: {path: a}", "spec.output.path: unknown field: write spec.output.s3.prefix"),
        ("output: {url: 'http://a'}", "spec.output.url: unknown field: write spec.output.s3.endpoint"),
        ("model: {cache: {path: /mnt}}", "Claim.path or spec.model.cache.hostPath.path"),
        ("output: {secretRef: a b}", "found the string 'a b': it has the fields name"),
        ("output: {s3: {secretRef: {name: a}}}", "unknown field: write spec.output.secretRef"),
        # a wrong choice
        ("model: {cache: {}}", "must be set; found none"),
        ("dataset: {validation: {split: a, fraction: 0.1}}", "must be set; found fraction and split: keep one"),
        # GPUs
        ("resources: {limits: {nvidia.com/gpu: 4}}", "write their number in resources.gpusPerNode"),
        ("resources: {requests: {gpu: 1}}", "spec.resources.requests: requests must not have GPUs"),
        # addresses
        ("model: {uri: 'hf://org/m@v1'}", "write uri: hf://org/m and revision: v1"),
        ("model: {uri: 'hf://org/m/x'}", "write hf://org/m without /x"),
        ("model: {uri: 'hf://<org>/m'}", "replace the placeholder <org>"),
        ("model: {uri: 'hf://${MODEL}'}", "replace the placeholder ${MODEL}"),
        ("dataset: {uri: 'hf://org/m/tree/main'}", "write uri: hf://org/m and revision: main"),
        ("dataset: {uri: 's3://key:secret@b/d'}", "found an address with a password in it: write s3://b/d, and"),
        ("model: {uri: pvc://c/../x}", "the path must not have .. in it: write it from the root of the volume"),
        ("dataset: {uri: pvc://c/a/..}", "the path must not have .. in it"),
        ("dataset: {uri: 'hf://datasets/org/d'}", "write hf://org/d"),
        ("training: {learningRate: 2e-4\u00a0}", "it has a non-breaking space (U+00A0)"),
        ("model: {uri: 'hf://org/my\u00a0model'}", "it has a non-breaking space (U+00A0)"),
        ("model: {cache: {hostPath: {path: /mnt//models/}}}", "found '/mnt//models/': write /mnt/models"),
        # modules
        ("method: {lora: {targetModules: 'q_proj,v_proj'}}", "write a list: [q_proj, v_proj]"),
        ("method: {lora: {targetModules: 'q_proj v_proj'}}", "write a list: [q_proj, v_proj]"),
        ("method: {lora: {targetModules: All-Linear}}", "found 'All-Linear': write all-linear"),
        ("method: {lora: {targetModules: [all-linear]}}", "write targetModules: all-linear, not a list"),
    ],
)  # fmt: skip
def test_the_remedy_of_a_job_is_right(text: str, expected: str) -> None:
    assert expected in said(text)


def test_a_password_is_not_shown() -> None:
    assert "secret@" not in said("dataset: {uri: 's3://key:secret@b/d'}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adapter: {name: x}", "spec.adapter.name: unknown field: write fineTuneJobRef: {name: …}"),
        ("target: {name: vllm}", "spec.target.name: unknown field: write deploymentRef: {name: …}"),
        ("rollback: false", "write rollback: {automatic: false}"),
        ("verification: false", "found false: it cannot be turned off; it has the fields "),
        ("adapter: s3://a/b", "write adapter: {uri: s3://a/b}"),
        ("strategy: {canary: true}", "write canary: {steps: […]}"),
        ("strategy: {canary: {steps: [{percent: 0.2}]}}", "found the number 0.2: write 20"),
        ("strategy: {canary: {steps: [{percent: 20%}]}}", "found the string '20%': write 20"),
        ("strategy: {maxUnavailable: 25%}", "a percentage is not possible here: write the number itself"),
        ("strategy: {pauseSeconds: 10m}", "write 600"),
        ("verification: {everyMinutes: 1h}", "write 60"),
        ("adapter: {fineTuneJobRef: {name: x}, digest: latest}", "write sha256: and 64 lower-case hex digits"),
        ("adapter: {uri: s3://a/b}", "; found fineTuneJobRef and uri: keep one"),
    ],
)
def test_the_remedy_of_a_deployment_is_right(text: str, expected: str) -> None:
    assert expected in said(text, "AdapterDeployment")


@pytest.mark.parametrize("text", ["replicas: 2", "cpu: 2", "fp16: true", "usedora: true", "dataset: {token: a}"])
def test_a_deployment_is_not_told_about_fields_of_a_job(text: str) -> None:
    message = said(text, "AdapterDeployment")
    assert "unknown field" in message
    assert not re.search(r"resources|training|method|gpus|trainer", message)


@pytest.mark.parametrize(
    "text",
    [
        *(f"model: {{uri: '{uri}'}}" for uri in MODELS),
        *(f"dataset: {{uri: '{uri}'}}" for uri in DATASETS),
        "method: {lora: {targetModules: 'model.*q_proj'}}",
        "method: {lora: {targetModules: all-linear}}",
    ],
)  # fmt: skip
def test_what_is_right_stays_right(text: str) -> None:
    assert said(text) == ""
