"""``evaluation.compareWithFull``: the numbers side by side, and that no failure of the comparison costs the adapter."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.comparison import Comparison, ComparisonRow
from finetune_api.messages import ProgressReport
from finetune_api.reasons import Reason
from finetune_trainer import full_comparison
from finetune_trainer.models import estimate, loading, memory
from finetune_trainer.preflight import check
from finetune_trainer.report import comparison
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.progress import Reporter
from tools.testing.trainer_jobs import Workbench, train

WANTED: dict[str, Any] = {"compareWithFull": True, "forgetting": {"maxSequences": 2}}
FULL_RATE = {"learningRate": 1e-5}


def rows_of(comparison: Comparison | None) -> dict[str, Any]:
    """Return the rows by name."""
    assert comparison is not None
    return {row.name: row for row in comparison.rows}


def published(bench: Workbench) -> list[str]:
    """Return what lies beside the checkpoints."""
    return sorted({key.split("/")[2] for key in bench.objects()})


def test_the_adapter_is_compared_with_what_method_full_gives_on_the_same_data(workbench: Any) -> None:
    bench, alone = workbench(), workbench()
    result, run = train(bench.settings(evaluation=WANTED))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    rows = rows_of(result.evaluation.comparison)
    base, adapter, full = rows["base"], rows["adapter"], rows["full"]
    assert (base.loss, adapter.loss) == (result.evaluation.base_loss, result.evaluation.loss)
    assert (base.trainable_parameters, adapter.trainable_parameters, full.trainable_parameters) == (0, 8192, 95_104)
    assert adapter.size_bytes < base.size_bytes
    assert full.size_bytes == pytest.approx(base.size_bytes, rel=0.05)
    for row in (adapter, full):
        assert row.tokens_per_second > 0
        assert row.peak_memory_bytes is not None
        assert row.general_perplexity > 0
    assert full.peak_memory_bytes > 0
    assert adapter.peak_memory_bytes > base.size_bytes, "the base, loaded while the data is prepared, is in it"
    assert result.evaluation.comparison is not None
    assert result.evaluation.comparison.memory == "process"
    assert result.evaluation.comparison.learning_rate == 1e-5
    assert bench.manifest().evaluation == result.evaluation
    assert published(bench) == ["adapter", "checkpoints"], "the model that was only measured is not kept"
    assert run.progress is not None
    assert run.progress.step == 6

    training = bench.job()["spec"]["training"] | FULL_RATE
    full_result, _ = train(alone.settings(method={"full": {}}, training=training))
    assert full_result.evaluation is not None
    assert full.loss == pytest.approx(full_result.evaluation.loss, abs=1e-5), "what the job itself would have given"
    assert full.improvement_percent == pytest.approx(full_result.evaluation.improvement_percent, abs=0.01)
    page, card = bench.read("team/job/adapter/report.html").decode(), bench.read("team/job/adapter/README.md").decode()
    for document in (page, card):
        assert "95.1k" in document
        assert f"{full.loss:.4f}" in document


@pytest.mark.parametrize(
    ("adapter", "full", "sentence"),
    [
        (
            30.0,
            40.0,
            "The adapter has 75 % of the improvement of full fine-tuning, with 10 % of its trained parameters.",
        ),
        (40.0, 40.0, "The adapter is at least as good as full fine-tuning, with 10 % of its trained parameters."),
        (30.0, -5.0, "Full fine-tuning is no better than the base here, the adapter is."),
        (-1.0, -5.0, "Full fine-tuning is no better than the base here."),
        (-1.0, 5.0, "Full fine-tuning lowers the loss by 5 %, the adapter does not."),
    ],
)
def test_the_sentence_says_what_the_numbers_say(adapter: float, full: float, sentence: str) -> None:
    rows = [
        ComparisonRow(name="base", loss=2.0),
        ComparisonRow(name="adapter", improvement_percent=adapter, trainable_parameters=10),
        ComparisonRow(name="full", improvement_percent=full, trainable_parameters=100),
    ]
    assert comparison.describe_verdict(Comparison(learning_rate=1e-5, memory="gpu", rows=rows)) == sentence


def test_an_interruption_of_the_comparison_repeats_nothing_that_was_done(
    workbench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, uninterrupted_bench = workbench(), workbench()
    uninterrupted, _ = train(uninterrupted_bench.settings(evaluation=WANTED))
    original, stop_at = full_comparison.LogReporter.submit, 4
    with monkeypatch.context() as patched:

        def reporter(interruption: Any) -> Any:
            def submit(self: Any, sent: Any) -> None:
                original(self, sent)
                if sent.progress.step >= stop_at:
                    interruption.request()

            patched.setattr(full_comparison.LogReporter, "submit", submit)
            return Reporter(None, Path())

        result, _ = train(bench.settings(evaluation=WANTED), reporter)
    assert result.reason == "Preempted", result.message
    assert "asked to stop; the checkpoint of step 4 is saved (of the comparison with full fine-tuning" in result.message
    assert result.checkpoint is not None
    assert result.checkpoint.step == 6
    assert result.checkpoint.uri.startswith(f"s3://{bench.bucket}/team/job/checkpoints/"), "that of the adapter"
    assert "adapter" not in published(bench)

    steps: list[int] = []
    monkeypatch.setattr(full_comparison.LogReporter, "submit", lambda self, sent: steps.append(sent.progress.step))
    result, _ = train(bench.settings(evaluation=WANTED))
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 6)
    assert sorted(set(steps)) == [4, 5, 6]
    assert bench.weights() == uninterrupted_bench.weights()
    assert result.evaluation is not None
    assert uninterrupted.evaluation is not None
    rows, expected = rows_of(result.evaluation.comparison), rows_of(uninterrupted.evaluation.comparison)
    assert rows["full"].loss == expected["full"].loss
    assert rows["adapter"].peak_memory_bytes, "measured by the attempt that trained it"
    assert published(bench) == ["adapter", "checkpoints"]


def test_a_comparison_that_does_not_fit_or_diverges_is_reported_and_the_adapter_published(
    workbench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, small, diverging = workbench(), workbench(), workbench()
    original = loading.load_base

    def load(directory: Any, *arguments: Any, **more: Any) -> Any:
        model = original(directory, *arguments, **more)
        if model.training is False and comparison_runs():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return model

    def comparison_runs() -> bool:
        return bool(started)

    started: list[bool] = []
    session_of = full_comparison.full_session

    def full_session(session: Any) -> Any:
        started.append(True)
        return session_of(session)

    monkeypatch.setattr(full_comparison, "full_session", full_session)
    monkeypatch.setattr(loading, "load_base", load)
    settings = bench.settings(evaluation=WANTED)
    result, _ = train(settings)
    assert result.reason == "Succeeded", result.message
    assert not (settings.scratch / "run" / "comparison").exists(), "what it left on the disk is gone"
    assert result.evaluation is not None
    assert result.evaluation.comparison is not None
    message = result.evaluation.comparison.message
    assert message is not None
    assert message.startswith(
        "full fine-tuning did not fit into the memory: the GPU has too little memory: CUDA out of"
    )
    assert f"spec.evaluation.compareWithFull: {message}" in result.warnings
    assert rows_of(result.evaluation.comparison)["full"].loss is None
    assert "did not fit into the memory" in bench.read("team/job/adapter/report.html").decode()
    assert "did not fit into the memory" in bench.read("team/job/adapter/README.md").decode()

    monkeypatch.undo()

    class Diverging(full_comparison.LogReporter):
        def submit(self, report: ProgressReport) -> None:
            if report.progress.step == 3:
                raise Failure(Reason.LOSS_DIVERGED, "lower it", "spec.training.learningRate")

    with monkeypatch.context() as patched:
        patched.setattr(full_comparison, "LogReporter", Diverging)
        result, _ = train(diverging.settings(evaluation=WANTED))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert result.evaluation.comparison is not None
    assert (
        result.evaluation.comparison.message == "full fine-tuning diverged at step 3, with its learning rate 1e-05"
    ), "nobody is told to lower a learning rate that is not theirs"

    monkeypatch.setattr("finetune_trainer.models.memory.free_bytes", lambda: 1_000_000)
    result, _ = train(small.settings(evaluation=WANTED))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    assert result.evaluation.comparison is not None
    assert "take 0.0 GB, and 0.0 GB of memory are free" in str(result.evaluation.comparison.message)


def test_a_comparison_that_kills_its_process_is_not_tried_a_third_time(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for SIGKILL, after which nothing is written any more."""

    class Watched(full_comparison.LogReporter):
        def submit(self, report: Any) -> None:
            raise Killed

    output = bench.directory / "output"

    def settings() -> Settings:
        return replace(bench.settings(evaluation=WANTED), workstation=True, output_directory=output)

    def left() -> set[str]:
        return {path.name for path in output.iterdir() if path.is_dir()} - {".work"}

    with monkeypatch.context() as patched:
        patched.setattr(full_comparison, "LogReporter", Watched)
        endings = [train(settings())[0].reason for _ in range(2)]
    assert endings == ["TrainerError"] * 2, "the first may have been interrupted in an ordinary way"
    assert left() == {"checkpoints", "comparison"}
    result, _ = train(settings())
    assert (result.reason, result.resumed_from_step) == ("Succeeded", 6)
    assert result.evaluation is not None
    assert result.evaluation.comparison is not None
    assert "continued from step 0 ended without a further checkpoint" in str(result.evaluation.comparison.message)
    assert left() == {"adapter", "checkpoints"}

    (output / "comparison").mkdir()
    (output / "comparison" / "optimizer.pt").write_bytes(b"of an attempt that was killed after it had published")
    again, _ = train(settings())
    assert again.reason == "Succeeded"
    assert left() == {"adapter", "checkpoints"}


def test_the_comparison_has_the_objective_and_the_choice_of_weights_of_the_job(bench: Workbench) -> None:
    pairs = [
        {"prompt": f"What follows {number}?\n", "chosen": f"{number + 1}.", "rejected": f"{number + 2}."}
        for number in range(30)
    ]
    bench.dataset("".join(json.dumps(row) + "\n" for row in pairs))
    evaluation = {"compareWithFull": True, "everySteps": 3, "selectBest": True}
    result, _ = train(bench.settings(objective="dpo", evaluation=evaluation))
    assert result.reason == "Succeeded", result.message
    assert result.evaluation is not None
    rows = rows_of(result.evaluation.comparison)
    assert result.evaluation.comparison is not None
    assert result.evaluation.comparison.message is None
    assert rows["full"].loss is not None
    assert rows["full"].accuracy is not None
    assert rows["full"].perplexity is None


def test_memory_is_that_of_the_training_which_is_measured() -> None:
    size = 200_000_000
    meter = memory.MemoryMeter()
    block = torch.ones(size // 4)
    del block
    highest = meter.peak()
    assert highest is not None
    assert 0.95 * size < highest < 2 * size, "what was given back since counts"
    again = memory.MemoryMeter().peak()
    assert again is not None
    assert again < size / 4, "what was there before does not"


def test_the_limit_of_the_container_is_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory.free_bytes()
    assert machine is not None
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OLD_CGROUP", tmp_path / "memory")
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 900000\n")
    assert memory.free_bytes() == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes() == pytest.approx(machine, rel=0.5)


def test_the_preflight_says_what_the_comparison_needs(bench: Workbench) -> None:
    job = bench.job(evaluation=WANTED, resources={"gpusPerNode": 1})
    result = check(bench.settings_of(job), patience_seconds=1)
    assert result.estimate is not None
    assert result.estimate.gpu_memory_bytes is not None
    assert result.estimate.comparison_gpu_memory_bytes is not None
    assert result.estimate.comparison_gpu_memory_bytes > result.estimate.gpu_memory_bytes
    assert not any("compareWithFull" in warning for warning in result.warnings)
    large = result.estimate.model_copy(update={"comparison_gpu_memory_bytes": 201 * 2**30})
    (memory_warning,) = estimate.list_warnings(large)
    assert "needs about 201 GiB of GPU memory, more than the 178 GiB of a B200" in memory_warning
    without = check(bench.settings(resources={"gpusPerNode": 1}), patience_seconds=1)
    assert without.estimate is not None
    assert without.estimate.comparison_gpu_memory_bytes is None
