"""The clean-up deletes what a training wrote, nothing of another job, and says what it could not delete."""

import json
from typing import Any

import pytest

from finetune_api.messages import CleanUpResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer import clean_up
from finetune_trainer.merge import merge_adapter
from tools.testing.preflight_image import run_in_image
from tools.testing.trainer_jobs import Workbench, diverging_sections, train, train_until

OTHER = {"namespace": "team", "name": "other", "uid": "99999999-0000-4000-8000-000000000000"}


def job(bench: Workbench, meta: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    job = bench.job(**spec)
    return job | ({"metadata": meta} if meta else {})


def test_everything_that_a_training_wrote_goes_and_nothing_of_another_job(bench: Workbench) -> None:
    other_spec = {"training": {**bench.job()["spec"]["training"], "seed": 7}}
    assert train_until(bench.settings_of(job(bench, OTHER, **other_spec)), 2).reason == "Preempted"
    other_keys = bench.objects()
    assert other_keys
    output = {**bench.job()["spec"]["output"], "mergedModel": True}
    evaluation = {"samples": 1, "compareWithFull": True, "gate": {"metric": "loss", "max": 100.0}}
    settings = bench.settings(output=output, evaluation=evaluation, method={"adalora": {"targetRank": 4}})
    result, _ = train(settings)
    assert result.reason == "Succeeded", result.message
    assert merge_adapter(settings).reason == "Succeeded"
    written = [key for key in bench.objects() if key not in other_keys]
    assert {key.split("/")[2] for key in written} >= {"adapter", "merged", "checkpoints"}
    outcome = clean_up.clean_up(settings)
    assert outcome.reason == "Succeeded", outcome.message
    assert outcome.message == f"{len(written)} objects were deleted from s3://{bench.bucket}/team/job."
    assert bench.objects() == other_keys
    assert clean_up.clean_up(settings).message.startswith("0 objects"), "a second clean-up finds nothing"


def test_what_failed_attempts_left_goes_too(bench: Workbench) -> None:
    gate = {"metric": "loss", "max": 0.1}
    for sections in ({"evaluation": {"samples": 1, "gate": gate}}, diverging_sections(bench)):
        settings = bench.settings(**sections)
        assert train(settings)[0].reason in ("GateFailed", "LossDiverged")
    assert {key.split("/")[2] for key in bench.objects()} >= {"rejected", "failed"}
    assert clean_up.clean_up(settings).reason == "Succeeded"
    assert bench.objects() == []


@pytest.mark.parametrize(
    ("output", "reason", "message"),
    [
        ({"s3": {"bucket": "no-such-bucket"}}, Reason.BUCKET_NOT_FOUND, "bucket 'no-such-bucket' does not exist"),
        ({"secretRef": {"name": "gone"}}, Reason.OUTPUT_ACCESS_DENIED, "the Secret does not exist"),
        ({"s3": {"endpoint": "http://127.0.0.1:1"}}, Reason.CLEAN_UP_FAILED, "127.0.0.1:1"),
    ],
    ids=["bucket", "secret", "endpoint"],
)
def test_what_cannot_be_reached_is_named(
    bench: Workbench, output: dict[str, Any], reason: Reason, message: str
) -> None:
    before = bench.job()["spec"]["output"]
    changed = {**before, **output, "s3": {**before["s3"], **output.get("s3", {})}}
    outcome = clean_up.clean_up(bench.settings(output=changed), 0.5)
    assert outcome.reason == reason
    assert message in outcome.message


def test_it_runs_in_the_small_image(bench: Workbench, preflight_image: Any) -> None:
    train_until(bench.settings(), 2)
    log = bench.directory / "termination-log"
    environment = {
        "FINETUNE_JOB": json.dumps(bench.job()),
        "FINETUNE_MOUNTS": str(bench.mounts),
        "FINETUNE_TERMINATION_LOG": str(log),
    }
    completed = run_in_image(preflight_image, "-m", "finetune_trainer", "clean-up", environment=environment)
    assert completed.returncode == 0, completed.stderr
    assert CleanUpResult.model_validate_json(log.read_bytes()).reason == "Succeeded"
    assert bench.objects() == []
    environment["FINETUNE_JOB"] = "{}"
    completed = run_in_image(preflight_image, "-m", "finetune_trainer", "clean-up", environment=environment)
    assert completed.returncode == EXIT_CODES[Reason.SPEC_INVALID]
    assert CleanUpResult.model_validate_json(log.read_bytes()).reason == Reason.SPEC_INVALID
