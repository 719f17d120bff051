"""An interrupted run ends with the same weights as one that was not."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_artifacts.digests import digest_of_file
from finetune_trainer.models import device
from tools.testing.trainer_jobs import ROWS, Workbench, jsonl, train, train_until

TRAINING: dict[str, Any] = {
    "epochs": 2,
    "perDeviceBatchSize": 2,
    "gradientAccumulationSteps": 3,
    "maxLength": 48,
    "learningRate": 2e-3,
    "scheduler": "cosine",
    "warmupRatio": 0.2,
    "weightDecay": 0.01,
}


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_a_run_interrupted_at_every_other_step_ends_bit_identical(
    workbench: Callable[[], Workbench], packing: bool
) -> None:
    spec: dict[str, Any] = {
        "method": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
        "training": TRAINING | {"packing": packing, "maxLength": 64 if packing else 48},
        "evaluation": {"everySteps": 3},
    }
    if packing:
        spec["training"] |= {"perDeviceBatchSize": 1, "gradientAccumulationSteps": 2}
    uninterrupted, resumed = workbench(), workbench()
    result, run = train(uninterrupted.settings(**spec))
    assert result.reason == "Succeeded", result.message
    assert run.progress is not None
    total = run.progress.total_steps
    for step in range(1, total, 2):
        interrupted = train_until(resumed.settings(**spec), step)
        assert interrupted.reason == "Preempted", interrupted.message
        assert interrupted.checkpoint is not None
        assert interrupted.checkpoint.step == step
    result, _ = train(resumed.settings(**spec))
    assert result.reason == "Succeeded", result.message
    assert result.resumed_from_step == max(range(1, total, 2))
    assert resumed.weights() == uninterrupted.weights()


def test_a_run_interrupted_after_its_last_step_only_has_to_be_finished(workbench: Callable[[], Workbench]) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    train(uninterrupted.settings())
    assert train_until(interrupted.settings(), 6).reason == "Preempted"
    result, _ = train(interrupted.settings())
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 6)
    assert interrupted.weights() == uninterrupted.weights()
    assert interrupted.read("team/job/adapter/metrics.jsonl").count(b"\n") == uninterrupted.read(
        "team/job/adapter/metrics.jsonl"
    ).count(b"\n")


def test_a_damaged_checkpoint_is_skipped_and_replaced(workbench: Callable[[], Workbench]) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    train(uninterrupted.settings())
    for step in (2, 4):  # of an attempt that is asked to stop only the last checkpoint is sure to be uploaded
        train_until(interrupted.settings(), step)
    (key,) = (key for key in interrupted.objects() if key.endswith("/step-00000004/trained.safetensors"))
    body = bytearray(interrupted.read(key))
    body[-1] ^= 1
    interrupted.server.store().client.put_object(Bucket=interrupted.bucket, Key=key, Body=bytes(body))
    result, _ = train(interrupted.settings())
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 2)
    assert interrupted.weights() == uninterrupted.weights()


def test_a_dataset_that_changed_between_attempts_ends_the_job(bench: Workbench) -> None:
    train_until(bench.settings(), 4)
    before = digest_of_file(bench.mounts / "configmaps" / "data" / "train.jsonl")
    bench.dataset(jsonl([*ROWS, {"prompt": "One more?", "completion": "Yes."}]))
    after = digest_of_file(bench.mounts / "configmaps" / "data" / "train.jsonl")
    stored = bench.objects()
    result, _ = train(bench.settings())
    assert result.reason is Reason.DATASET_CHANGED
    assert f"configmap://data/train.jsonl train.jsonl was {before}, is {after}" in result.message
    keys = [key for key in bench.objects() if not key.startswith("team/job/failed/")]
    assert keys == stored, "what was trained is kept"
    bench.dataset(jsonl(ROWS))
    result, _ = train(bench.settings())
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 4)


def test_another_job_at_the_same_place_may_have_other_data(bench: Workbench) -> None:
    train_until(bench.settings(), 4)
    bench.dataset(jsonl([*ROWS, {"prompt": "One more?", "completion": "Yes."}]))
    job = bench.job()
    job["metadata"] |= {"uid": "another"}
    result, _ = train(bench.settings_of(job))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", None)


def test_a_resume_in_another_environment_is_reported(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(bench.settings(), 4)
    monkeypatch.setattr(device, "device_name", lambda: "another device")
    result, _ = train(bench.settings())
    assert result.reason == "Succeeded"
    assert any("device CPU (1 threads) → another device" in warning for warning in result.warnings)
