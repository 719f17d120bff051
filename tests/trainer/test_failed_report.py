"""The report of a failed attempt: it does not look like an adapter's, and never hides the attempt's reason."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.messages import ProgressReport, TrainerResult
from finetune_api.reasons import Reason
from finetune_cli import run as cli
from finetune_trainer import recipe
from finetune_trainer.attempt import run_attempt
from finetune_trainer.report import failed
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from tests.trainer.test_report import HOSTILE, PageText
from tools.testing.browser import Browser, NotInstalledError, chromium, running_browser
from tools.testing.trainer_jobs import AtStep, Workbench, alone, train

DIVERGED = Failure(Reason.LOSS_DIVERGED, "at step 4 the loss was nan: lower it", "spec.training.learningRate")


def failing(error: BaseException, at: int = 4) -> Callable[[Interruption], Reporter]:
    """Return a reporter that raises once the training has come to a step."""

    def fail() -> None:
        raise error

    return lambda _: AtStep(at, fail)


def test_a_failed_attempt_leaves_its_curves_and_settings_where_nobody_takes_them_for_an_adapter(
    bench: Workbench,
) -> None:
    result, run = train(bench.settings(), failing(DIVERGED))
    assert result.reason is Reason.LOSS_DIVERGED
    assert result.message == "spec.training.learningRate: at step 4 the loss was nan: lower it"
    assert result.report is not None
    assert result.report.uri == f"s3://{bench.bucket}/team/job/failed/report.html"
    assert {key.split("/")[2] for key in bench.objects()} == {"checkpoints", "failed"}
    assert not any(key.endswith("failed/manifest.json") for key in bench.objects())
    page = PageText(bench.read("team/job/failed/report.html").decode()).text
    assert "LossDiverged" in page
    assert "at step 4 the loss was nan: lower it" in page
    assert "4 of 6" in page
    assert result.checkpoint is not None
    assert f"The newest complete checkpoint is {result.checkpoint.uri}." in page
    assert "spec.training.learningRate" in page
    assert "8,192 of 103,296 parameters were to be trained" in page
    for absent in ("Verdict", "Serve, load, merge", "Traceback"):
        assert absent not in page
    steps = [json.loads(line)["step"] for line in bench.read("team/job/failed/metrics.jsonl").splitlines()]
    assert steps == [1, 2, 3]
    assert run.failure is not None

    again, run = train(bench.settings())
    assert (again.reason, run.failure) == ("Succeeded", None)
    assert again.report is not None
    assert again.report.uri.endswith("/adapter/report.html")


def test_on_a_workstation_it_is_where_the_report_is_looked_for(bench: Workbench) -> None:
    output = bench.directory / "output"
    settings = replace(bench.settings(), workstation=True, output_directory=output)
    secret = RuntimeError("no such luck at https://me:hidden@example.com/")
    result, _ = train(settings, failing(secret))
    assert result.reason is Reason.TRAINER_ERROR
    assert result.report is not None
    assert result.report.uri == str(output / "report.html")
    page = (output / "report.html").read_text()
    assert "Traceback" in page
    assert "RuntimeError: no such luck at https://…@example.com/" in PageText(page).text
    assert "hidden" not in page
    assert (output / "metrics.jsonl").is_file()
    assert not (output / "adapter").exists()
    description = cli.describe_result(result, cli.Request("job.yaml", output, (), (), False))
    assert description[0].startswith("failed: TrainerError: ")
    assert description[-1] == f"report {output / 'report.html'}"

    result, _ = train(settings)
    assert result.reason == "Succeeded"
    before = (output / "report.html").read_bytes()
    job = bench.job()
    job["metadata"] |= {"uid": "another"}
    refused, _ = train(replace(bench.settings_of(job), workstation=True, output_directory=output))
    assert (refused.reason, refused.report) == (Reason.OUTPUT_EXISTS, None)
    assert (output / "report.html").read_bytes() == before, "another job's place is not written to"


def test_what_fails_after_the_last_step_or_before_the_first_has_a_report_too(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(recipe, "publish", full)
        result, _ = train(bench.settings())
    assert result.evaluation is not None
    page = PageText(bench.read("team/job/failed/report.html").decode()).text
    assert f"{result.evaluation.base_loss:.4f} → {result.evaluation.loss:.4f}" in page

    monkeypatch.setattr(recipe, "train", full)
    result, _ = train(bench.settings())
    assert result.reason is Reason.HOST_OUT_OF_MEMORY
    page = PageText(bench.read("team/job/failed/report.html").decode()).text
    assert "before the first" in page
    assert "Rows" in page, "the data was prepared already"
    assert "Curves" not in page


@pytest.mark.parametrize("trouble", ["an error", "no answer"])
def test_a_report_that_cannot_be_left_hides_nothing_and_holds_up_nothing(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    answered = threading.Event()

    def upload(*_: Any) -> None:
        if trouble == "no answer":
            answered.wait(60)
        raise OSError("the disk is gone")

    monkeypatch.setattr(failed, "upload_directory", upload)
    monkeypatch.setattr(failed, "LIMIT_SECONDS", 0.5)
    monkeypatch.setattr(recipe, "train", lambda *_: (_ for _ in ()).throw(DIVERGED))
    began = time.monotonic()
    result, _ = train(bench.settings())
    answered.set()
    assert (result.reason, result.report) == (Reason.LOSS_DIVERGED, None)
    assert time.monotonic() - began < 20


def test_a_pod_that_is_asked_to_stop_meanwhile_still_ends_with_its_own_reason(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, messages = Run(), []
    interruption = Interruption(60, lambda: messages.append(run.failure))
    monkeypatch.setattr(failed, "upload_directory", lambda *_: interruption.request())
    monkeypatch.setattr(recipe, "train", lambda *_: (_ for _ in ()).throw(DIVERGED))
    run_attempt(bench.settings(), run, interruption, Reporter(None, Path()), alone)
    (message,) = messages
    assert isinstance(message, TrainerResult)
    assert message.reason is Reason.LOSS_DIVERGED

    monkeypatch.undo()
    within: list[float] = []
    interruption = Interruption(6, lambda: None)
    interruption.request()
    monkeypatch.setattr(threading.Thread, "join", lambda _, timeout=None: within.append(timeout))
    run.owns_output = True
    failed.publish_failed_report(bench.settings(), run, DIVERGED, interruption)
    assert 0 < within[0] <= 1, "of a grace period of 6 seconds 5 are for the result"


def test_it_can_be_read_on_a_phone_and_in_the_dark(bench: Workbench, tmp_path: Path) -> None:
    try:
        chromium()
    except NotInstalledError as error:
        pytest.skip(str(error))

    class Ending(Reporter):
        def submit(self, report: ProgressReport) -> None:
            if report.progress.step == 4:
                raise Failure(Reason.TRAINER_ERROR, HOSTILE)

    result, _ = train(
        replace(bench.settings(), workstation=True, output_directory=tmp_path / "output"),
        lambda _: Ending(None, Path()),
    )
    assert result.report is not None
    browser: Browser
    with running_browser(tmp_path) as browser:
        for width, scheme in ((320, "dark"), (1280, "light")):
            page = browser.show(Path(result.report.uri), width, scheme)
            assert page.errors == page.requests == []
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), f"too wide for {width} px"
            page.picture(tmp_path / f"{width}-{scheme}.png")
        assert page.evaluate("document.title") == "job: fine-tuning report", "no script of the message ran"
        titles = page.evaluate("[...document.querySelectorAll('h2')].map(e => e.textContent)")
        assert titles == [
            "The attempt failed", "Warnings", "Curves", "Data", "Trained parameters", "Settings", "Attempts",
        ]  # fmt: skip
        curves = page.evaluate("[...document.querySelectorAll('figcaption')].map(e => e.firstChild.textContent.trim())")
        assert curves == ["Loss", "Learning rate", "Gradient norm", "Speed", "Memory"]
