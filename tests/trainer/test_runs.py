"""Runs that share a prefix: each keeps its checkpoints, a new one says why, and all attempts learn the same tokens."""

import shutil
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_trainer.checkpoints import run_fingerprint, template_date
from finetune_trainer.models import device
from finetune_trainer.preflight import check
from tools.testing.tiny_model import TEMPLATE
from tools.testing.trainer_jobs import CHATS, ROWS, AtStep, Workbench, jsonl, train, train_until


def another(bench: Workbench, **spec: Any) -> dict[str, Any]:
    """Return a job of another name at the same prefix."""
    job = bench.job(**spec)
    job["metadata"] |= {"name": "other", "uid": "another"}
    return job


def test_the_same_rows_at_another_address_are_the_same_run(bench: Workbench) -> None:
    assert train_until(bench.settings(), 3).reason is Reason.PREEMPTED
    moved = bench.dataset(jsonl(ROWS), "moved.jsonl")
    again = train_until(bench.settings_of(another(bench, dataset={"uri": moved})), 4)
    assert again.resumed_from_step == 3


def test_two_running_jobs_with_the_same_prefix_spare_each_others_checkpoints(
    workbench: Callable[[], Workbench],
) -> None:
    alone, shared = workbench(), workbench()
    first_job, second_job = shared.job(), another(shared, method={"lora": {"rank": 2}})
    assert train_until(shared.settings_of(first_job), 3).reason is Reason.PREEMPTED
    stopped, run = train(shared.settings_of(second_job), lambda interruption: AtStep(5, interruption.request))
    assert (stopped.reason, stopped.resumed_from_step) == (Reason.PREEMPTED, None)
    assert not run.warnings[1:], "another job's checkpoints are no warning of this one"
    assert any(
        "has checkpoints of FineTuneJob team/other too" in text
        for text in check(shared.settings_of(first_job)).warnings
    )
    resumed = train_until(shared.settings_of(first_job), 4)
    assert resumed.resumed_from_step == 3, "the other job's newer checkpoints did not take the place of this one's"
    assert train_until(shared.settings_of(second_job), 6).resumed_from_step == 5
    result, _ = train(shared.settings_of(first_job))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 4)
    train(alone.settings())
    assert shared.weights() == alone.weights()


def test_an_attempt_in_another_precision_says_so_and_keeps_what_was_trained(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_until(bench.settings(), 4)
    assert first.checkpoint is not None
    with monkeypatch.context() as other_gpu:
        other_gpu.setattr(device, "choose_precision", lambda _: "bf16")
        second = train_until(bench.settings(), 1)
    assert (second.reason, second.resumed_from_step) == (Reason.PREEMPTED, None)
    (warning,) = (text for text in second.warnings if "begins at step 0" in text)
    assert "the checkpoint of step 4 in " in warning
    assert "precision (fp32, now bf16)" in warning
    assert str(first.checkpoint.uri).rpartition("/")[0] in warning
    result, _ = train(bench.settings())
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 4), "back on the first GPU, it goes on there"


def test_a_run_resumed_after_midnight_learns_the_date_that_it_began_with(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    spec: dict[str, Any] = {"model": {"uri": "pvc://dated/model"}}
    for bench in (uninterrupted, interrupted):
        directory = bench.mounts / "claims" / "dated" / "model"
        shutil.copytree((bench.mounts / "claims" / "models" / "tiny"), directory)
        (directory / "chat_template.jinja").write_text(
            "{%- set today = strftime_now('%d %b %Y') if strftime_now is defined %}<|system|>Today: {{ today }}<|end|>"
            + TEMPLATE
        )
        bench.dataset(jsonl(CHATS))
    monkeypatch.setattr(template_date, "today", lambda: date(2026, 3, 1))
    train(uninterrupted.settings(**spec))
    train_until(interrupted.settings(**spec), 3)
    monkeypatch.setattr(template_date, "today", lambda: date(2026, 3, 2))
    result, _ = train(interrupted.settings(**spec))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 3), result.warnings
    assert interrupted.weights() == uninterrupted.weights()
    job = interrupted.job(**spec)
    job["spec"]["output"]["s3"]["prefix"] = "team/later"
    later, _ = train(interrupted.settings_of(job))
    assert later.reason == "Succeeded"
    assert interrupted.read("team/later/adapter/adapter_model.safetensors") != uninterrupted.weights(), (
        "the date is learned"
    )


def test_each_call_for_the_time_is_replaced() -> None:
    template = (
        """{{ strftime_now("%Y-%m-%d") }} {{ strftime_now( '%d %b %Y' ) }} """
        "{{ strftime_now is defined }} {{ strftime_now(form) }}"
    )
    assert template_date.write_date(template, date(2026, 7, 4)) == (
        '{{ "2026-07-04" }} {{ "04 Jul 2026" }} {{ strftime_now is defined }} {{ strftime_now(form) }}'
    )


def test_what_differs_is_named() -> None:
    before = {"precision": "fp32", "training": {"maxLength": 48, "seed": 1}, "gone": None, "base": "sha256:" + "a" * 64}
    after = {"precision": "bf16", "training": {"maxLength": 64, "seed": 1}, "base": "sha256:" + "b" * 64}
    assert run_fingerprint.describe_differences(before, after) == [
        "base",
        "precision (fp32, now bf16)",
        "training.maxLength (48, now 64)",
    ]
