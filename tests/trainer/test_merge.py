"""``python -m finetune_trainer merge``: the finished adapter and its base become one model, once, and verified."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from finetune_api.manifest import MergedManifest
from finetune_api.messages import MergeResult
from finetune_api.reasons import Reason
from finetune_artifacts.digests import digest_of
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.fence import claim_storage
from finetune_artifacts.upload import put_manifest
from finetune_trainer import merge
from finetune_trainer.merge import main, merge_adapter
from finetune_trainer.runtime.settings import Settings
from tools.testing.s3_server import S3Server
from tools.testing.trainer_jobs import Workbench, train

MERGED = "team/job/merged"


@pytest.fixture(scope="module")
def trained(s3_server: S3Server, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Return a bucket with a finished adapter."""
    directory = tmp_path_factory.mktemp("merge")
    bench = Workbench(s3_server, s3_server.create_bucket("test-merge"), base_model, directory)
    assert merge_adapter(settings(bench)).reason is Reason.MERGE_FAILED, "there is no adapter yet"
    result, _ = train(settings(bench))
    assert result.reason == "Succeeded", result.message
    assert not merged_keys(bench), "a trainer with a GPU merges nothing"
    return bench


def settings(bench: Workbench, attempt: int = 1, **spec: Any) -> Settings:
    output = bench.job()["spec"]["output"] | {"mergedModel": True}
    training = bench.job()["spec"]["training"] | {"maxSteps": 3, "learningRate": 1e-2, "precision": "bf16"}
    return replace(bench.settings(output=output, training=training, **spec), attempt=attempt)


def merged_keys(bench: Workbench) -> list[str]:
    return [key for key in bench.objects() if key.startswith(f"{MERGED}/")]


def manifest(bench: Workbench) -> MergedManifest:
    return MergedManifest.model_validate_json(bench.read(f"{MERGED}/manifest.json"))


def test_a_merge_that_was_cut_off_is_repeated_and_a_finished_one_is_found(
    trained: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any) -> str:
        raise ArtifactError(Purpose.OUTPUT, Fault.UNREACHABLE, "S3 is away")

    with monkeypatch.context() as patched:
        patched.setattr(merge, "put_manifest", cut_off)
        assert merge_adapter(settings(trained)).reason is Reason.UPLOAD_FAILED
    assert merged_keys(trained), "the manifest comes last"
    assert f"{MERGED}/manifest.json" not in merged_keys(trained)

    job = settings(trained, attempt=2)
    assert main(job) == 0
    result = MergeResult.model_validate_json(job.termination_log.read_bytes())
    assert result.merged_model is not None
    assert result.merged_model.uri == f"s3://{trained.bucket}/{MERGED}"
    assert result.merged_model.digest == digest_of(trained.read(f"{MERGED}/manifest.json"))
    written = manifest(trained)
    assert written.adapter_digest == digest_of(trained.read("team/job/adapter/manifest.json"))
    assert written.precision == trained.manifest().precision == "bf16"
    files = {"config.json", "model.safetensors", "tokenizer.json", "golden.json"}
    assert files <= {file.path for file in written.files}
    assert trained.read(f"{MERGED}/golden.json") == trained.read("team/job/adapter/golden.json")
    tensors = load_file(trained.server.buckets / trained.bucket / MERGED / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}
    assert not [key for key in trained.objects() if "/claims/" in key], "a finished merge releases its claim"

    def never(*_: Any) -> None:
        raise AssertionError("it is merged already")

    monkeypatch.setattr(merge, "fetch_model", never)
    assert merge_adapter(settings(trained, attempt=3)) == result


@pytest.fixture
def unmerged(trained: Workbench) -> Workbench:
    """Return the same bucket without the merged model."""
    for key in merged_keys(trained):
        (trained.server.buckets / trained.bucket / key).unlink()
    return trained


def test_another_base_than_the_trained_one_is_found_out(unmerged: Workbench, base_model: Path, tmp_path: Path) -> None:
    other_base = tmp_path / "other"
    shutil.copytree(base_model, other_base)
    (unmerged.mounts / "claims" / "changed").symlink_to(tmp_path)
    weights = load_file(base_model / "model.safetensors")
    save_file(
        {name: tensor * 4 for name, tensor in weights.items()}, other_base / "model.safetensors", {"format": "pt"}
    )
    result = merge_adapter(settings(unmerged, model={"uri": "pvc://changed/other"}))
    assert result.reason is Reason.VERIFICATION_FAILED
    assert "Was the base changed since the training?" in result.message
    assert not merged_keys(unmerged)


def test_a_superseded_merge_writes_nothing_and_another_adapters_model_is_left_alone(unmerged: Workbench) -> None:
    later = settings(unmerged, attempt=2)
    store = later.store(Purpose.OUTPUT, 5)
    claimed = claim_storage(store, later.merge_claim, 2)
    assert merge_adapter(settings(unmerged, attempt=1)).reason is Reason.PREEMPTED
    assert not merged_keys(unmerged)
    claimed.release_claim()
    other_manifest = MergedManifest(
        job=later.origin,
        created_at="2026-01-01T12:00:00Z",
        adapter_digest=f"sha256:{'b' * 64}",
        base_model="tiny",
        precision="bf16",
        files=[],
    )
    put_manifest(store, later.merged, other_manifest)
    result = merge_adapter(settings(unmerged, attempt=2))
    assert result.reason is Reason.OUTPUT_EXISTS
    assert "of another adapter" in result.message


def test_a_model_that_an_older_trainer_merged_is_found_and_nothing_is_written(unmerged: Workbench) -> None:
    file = unmerged.server.buckets / unmerged.bucket / "team/job/adapter/manifest.json"
    content = file.read_bytes()
    older = json.loads(content)
    older["merged"] = {"uri": "s3://theirs/merged", "files": [older["files"][0] | {"sizeBytes": 7}]}
    file.write_text(json.dumps(older), encoding="utf-8")
    before = unmerged.objects()
    try:
        result = merge_adapter(settings(unmerged))
    finally:
        file.write_bytes(content)
    assert result.merged_model is not None, result.message
    assert (result.merged_model.uri, result.merged_model.size_bytes) == ("s3://theirs/merged", 7)
    assert unmerged.objects() == before, "also no claim"
