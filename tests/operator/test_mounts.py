"""The mounts of a FineTuneJob's pods: all that its data and its model name, read-only."""

from typing import Any

import pytest

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_operator.resources.mounts import build_model_cache, build_volumes


def mounted(**dataset: Any) -> dict[str, str]:
    """Return the paths of the mounts that can only be read, and what each is."""
    spec = FineTuneJobSpec.model_validate(
        {"model": {"uri": "pvc://models/smollm"}, "dataset": dataset, "output": {"s3": {"bucket": "adapters"}}}
    )
    pod, mounts = build_volumes(spec)
    sources = {volume["name"]: volume for volume in pod}
    sources_by_path = {}
    for mount in mounts:
        volume = sources[mount["name"]]
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["readOnly"]
            sources_by_path[mount["mountPath"]] = volume["persistentVolumeClaim"]["claimName"]
        elif "configMap" in volume:
            sources_by_path[mount["mountPath"]] = volume["configMap"]["name"]
        elif "secret" in volume:
            sources_by_path[mount["mountPath"]] = volume["secret"]["secretName"]
        else:
            continue
        assert mount["readOnly"]
    return sources_by_path


MODEL = {"/etc/finetune/claims/models": "models"}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"uri": "pvc://rows/train.jsonl"}, {"/etc/finetune/claims/rows": "rows"}),
        ({"uri": "pvc://models/data/train.jsonl"}, {}),
        (
            {"uri": "pvc://rows/train.jsonl", "validation": {"uri": "pvc://others/test.jsonl"}},
            {"/etc/finetune/claims/rows": "rows", "/etc/finetune/claims/others": "others"},
        ),
        (
            {"uri": "configmap://texts/a", "validation": {"uri": "pvc://rows/test.jsonl"}},
            {"/etc/finetune/configmaps/texts": "texts", "/etc/finetune/claims/rows": "rows"},
        ),
        ({"uri": "hf://acme/rows", "secretRef": {"name": "hub"}}, {"/etc/finetune/secrets/hub": "hub"}),
    ],
    ids=["a claim", "the model's claim", "two claims", "a ConfigMap and a claim", "the hub"],
)
def test_what_the_dataset_names_is_mounted(dataset: dict[str, Any], expected: dict[str, str]) -> None:
    assert mounted(**dataset) == MODEL | expected


CLAIM = {"persistentVolumeClaim": {"claimName": "models", "path": "team"}}
HOST_PATH = {"hostPath": {"path": "/mnt/models"}}


@pytest.mark.parametrize(
    ("cache", "source"),
    [
        (CLAIM, {"persistentVolumeClaim": {"claimName": "models"}}),
        (HOST_PATH, {"hostPath": {"path": "/mnt/models", "type": "Directory"}}),
    ],
)
def test_the_preflight_writes_into_the_model_cache_and_the_trainer_only_reads(
    cache: dict[str, Any], source: dict[str, Any]
) -> None:
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://acme/tiny", "cache": cache},
            "dataset": {"uri": "configmap://texts/a"},
            "output": {"s3": {"bucket": "adapters"}},
        }
    )
    mount = {"name": "finetune-model-cache", "mountPath": "/etc/finetune/model-cache"}
    volumes = [{"name": "finetune-model-cache", **source}]
    assert build_model_cache(spec, read_only=False) == (volumes, [mount])
    assert build_model_cache(spec, read_only=True) == (volumes, [{**mount, "readOnly": True}])
