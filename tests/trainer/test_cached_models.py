"""Preflight and trainer with a model cache: from the hub's stand-in and from S3, with the job's own access."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.messages import PreflightResult
from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri
from finetune_artifacts.digests import digest_of_file
from finetune_trainer.preflight import check
from finetune_trainer.runtime.settings import Settings
from tools.testing.hub_server import COMMIT, TOKEN, Hub, running_hub
from tools.testing.trainer_jobs import Workbench, train

CACHE = {"persistentVolumeClaim": {"claimName": "models", "path": "team/hub"}}


@pytest.fixture
def hub(base_model: Path) -> Iterator[Hub]:
    """Yield a hub with a public model and a gated one."""
    with running_hub({"acme/tiny": base_model, "acme/gated": base_model}, gated={"acme/gated"}) as running:
        yield running


def cached(bench: Workbench, hub: Hub, uri: str, *, token: str | None = None, **spec: Any) -> Settings:
    """Return settings of a job on a model that is kept in the cache."""
    (bench.mounts / "model-cache").mkdir(exist_ok=True)
    model: dict[str, Any] = {"uri": uri, "cache": CACHE}
    if token is not None:
        secret = bench.mounts / "secrets" / "hub"
        secret.mkdir(parents=True, exist_ok=True)
        (secret / "HF_TOKEN").write_text(token)
        model["secretRef"] = {"name": "hub"}
    return dataclasses.replace(
        bench.settings(model=model, method={"lora": {"rank": 4}}, **spec), hub_endpoint=hub.endpoint
    )


def as_trainer(settings: Settings, result: PreflightResult) -> Settings:
    """Return settings of the trainer after a preflight, as the operator passes them on."""
    assert result.problems == []
    return dataclasses.replace(settings, model_revision=result.model_revision, cached_model=result.cached_model)


def model_directory(bench: Workbench, result: PreflightResult) -> Path:
    """Return the directory of the model in the cache."""
    assert result.cached_model is not None
    return bench.mounts / "model-cache" / "team" / "hub" / result.cached_model.directory


def test_the_trainer_reads_what_the_preflight_put_there_and_needs_no_hub(
    bench: Workbench, hub: Hub, base_model: Path
) -> None:
    settings = cached(bench, hub, "hf://acme/tiny")
    result = check(settings)
    directory = model_directory(bench, result)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (directory / name).read_bytes() == (base_model / name).read_bytes()
    nowhere = dataclasses.replace(as_trainer(settings, result), hub_endpoint="http://127.0.0.1:9")
    trained, _ = train(nowhere)
    assert trained.reason == "Succeeded", trained.message
    assert trained.adapter is not None
    assert (trained.adapter.base_model, trained.adapter.base_revision) == ("acme/tiny", COMMIT)


def test_the_second_preflight_downloads_no_weights(bench: Workbench, hub: Hub, base_model: Path) -> None:
    first = check(cached(bench, hub, "hf://acme/tiny"))
    sent = hub.sent_bytes["model.safetensors"]
    assert sent >= (base_model / "model.safetensors").stat().st_size
    second = check(cached(bench, hub, "hf://acme/tiny"))
    assert hub.sent_bytes["model.safetensors"] - sent < sent / 2  # its header, which proves the job's own access
    assert first.cached_model is not None
    assert second.cached_model == first.cached_model.model_copy(update={"downloaded_bytes": 0})


def test_a_job_without_access_does_not_get_a_gated_model_from_the_cache(bench: Workbench, hub: Hub) -> None:
    assert check(cached(bench, hub, "hf://acme/gated", token=TOKEN)).cached_model is not None
    refused = check(cached(bench, hub, "hf://acme/gated"))
    assert [problem.reason for problem in refused.problems] == [Reason.MODEL_ACCESS_DENIED]
    assert refused.cached_model is None


def test_nothing_is_downloaded_for_a_job_with_another_problem(bench: Workbench, hub: Hub) -> None:
    settings = cached(bench, hub, "hf://acme/tiny", dataset={"uri": "configmap://data/missing.jsonl"})
    result = check(settings)
    assert [problem.reason for problem in result.problems] == [Reason.DATASET_NOT_FOUND]
    assert result.cached_model is None
    assert list((bench.mounts / "model-cache").iterdir()) == []


def test_a_model_in_s3_is_kept_under_the_versions_of_its_objects(
    bench: Workbench, hub: Hub, base_model: Path, tmp_path: Path
) -> None:
    store, prefix = bench.server.store(), S3Uri(bench.bucket, "models/tiny")
    for path in base_model.iterdir():
        store.put_file(prefix.child(path.name), path, digest_of_file(path))
    settings = cached(bench, hub, f"s3://{bench.bucket}/models/tiny")
    first = check(settings)
    assert first.problems == []
    assert (model_directory(bench, first) / "config.json").read_bytes() == (base_model / "config.json").read_bytes()
    again = check(settings)
    assert again.cached_model is not None
    assert again.cached_model.downloaded_bytes == 0
    config_file = tmp_path / "tokenizer_config.json"
    config_file.write_bytes((base_model / "tokenizer_config.json").read_bytes() + b"\n")
    store.put_file(prefix.child(config_file.name), config_file, digest_of_file(config_file))
    changed = check(settings)
    assert changed.cached_model is not None
    assert first.cached_model is not None
    assert changed.cached_model.directory != first.cached_model.directory


@pytest.mark.parametrize("damage", ["removed", "another model", "manifest"])
def test_the_trainer_refuses_what_the_preflight_did_not_put_there(bench: Workbench, hub: Hub, damage: str) -> None:
    settings = cached(bench, hub, "hf://acme/tiny")
    result = check(settings)
    directory = model_directory(bench, result)
    weights = directory / "model.safetensors"
    if damage == "removed":
        shutil.rmtree(directory)
    elif damage == "another model":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        manifest = directory / "finetune-manifest.json"
        manifest.write_text(manifest.read_text() + " ")
    trained, _ = train(as_trainer(settings, result))
    assert trained.reason is Reason.MODEL_CACHE_FAILED
    assert "Create the job again" in trained.message


def test_a_workstation_says_that_it_does_not_use_the_cache(bench: Workbench, hub: Hub) -> None:
    settings = dataclasses.replace(
        cached(bench, hub, "hf://acme/tiny"), workstation=True, output_directory=bench.directory / "out"
    )
    result = check(settings)
    assert result.problems == []
    assert result.cached_model is None
    assert any(warning.startswith("spec.model.cache is a volume of a cluster") for warning in result.warnings)
