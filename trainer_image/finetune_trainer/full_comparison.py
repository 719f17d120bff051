"""``evaluation.compareWithFull``: the same base, trained whole with the same data, steps, effective batch and seed, measured beside the adapter.

Nothing that goes wrong with it may cost the adapter, which is finished and has its last checkpoint in S3: it becomes a sentence in the table.
"""

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.comparison import Comparison, ComparisonRow
from finetune_api.finetunejob import EvaluationStatus, FineTuneJobSpec
from finetune_api.messages import ProgressReport
from finetune_api.methods import Full, Method
from finetune_api.reasons import Reason
from finetune_api.tracking import Tracking
from finetune_artifacts.objects import head
from finetune_artifacts.upload import upload_directory
from finetune_trainer.checkpoints import best_weights
from finetune_trainer.data.dataset import Example
from finetune_trainer.evaluation import forgetting
from finetune_trainer.evaluation.likelihood import perplexity
from finetune_trainer.evaluation.measures import Measure
from finetune_trainer.methods import inspection
from finetune_trainer.models import device, memory
from finetune_trainer.publish.publishing import TrainedAdapter
from finetune_trainer.runtime.failures import Failure, Preempted, classify
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import COMPARISON
from finetune_trainer.session.plan import Plan, learning_rate
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.session.session import Session
from finetune_trainer.session.tracking import Trackers

TrainWhole = Callable[[Session, Callable[[str, int], None]], tuple[Plan, Any, str]]
"""Trains the model of a session to its last step, and says from which (recipe.train_model): the plan, the model, and the digest of its base."""

TRAINED_BYTES = 16
"""A weight that is trained in fp32, its gradient, and Adam's two moments."""


def compare(
    session: Session,
    made: TrainedAdapter,
    evaluation: EvaluationStatus,
    measure: Measure,
    general: list[Example],
    train: TrainWhole,
) -> EvaluationStatus:
    """The evaluation with the comparison. Raises Preempted alone."""
    whole = comparison_session(session)
    message, row = None, ComparisonRow(name="full")
    try:
        refuse_too_little_memory(session)
        row = train_and_measure(whole, train, made, evaluation, measure, general)
    except Preempted as error:
        raise Preempted(f"{error} (of the comparison with full fine-tuning: the adapter is trained)") from error
    except Exception as error:  # noqa: BLE001 -- whatever it is, the adapter is finished
        message = explain_failure(*classify(error), whole)
        log.warning("%s", message)
        session.run.warnings.append(f"spec.evaluation.compareWithFull: {message}")
        row = row.model_copy(update={"trainable_parameters": whole.run.parameters and whole.run.parameters.trainable})
    device.free_memory()
    # its checkpoints are large, and the disk may be what it lacked
    shutil.rmtree(whole.settings.scratch, ignore_errors=True)
    rows = [
        ComparisonRow(
            name="base",
            loss=evaluation.base_loss,
            perplexity=evaluation.base_perplexity,
            accuracy=evaluation.base_accuracy,
            general_perplexity=evaluation.forgetting and evaluation.forgetting.base_perplexity,
            trainable_parameters=0,
            size_bytes=weights_size(session.inputs.model),
        ),
        ComparisonRow(
            name="adapter",
            loss=evaluation.loss,
            improvement_percent=evaluation.improvement_percent,
            perplexity=evaluation.perplexity,
            accuracy=evaluation.accuracy,
            general_perplexity=evaluation.forgetting and evaluation.forgetting.perplexity,
            trainable_parameters=made.trainable_parameters,
            size_bytes=weights_size(made.directory),
            **read_costs(made.directory / "metrics.jsonl"),
        ),
        row,
    ]
    comparison = Comparison(
        learning_rate=learning_rate(whole.settings.job.spec),
        memory="gpu" if device.has_gpu() else "process",
        rows=rows,
        message=message,
    )
    return evaluation.model_copy(update={"comparison": comparison})


def comparison_session(session: Session) -> Session:
    """The same job with method full, and a place of its own for its checkpoints. Only the log hears of it: the status speaks of the adapter."""
    settings = session.settings
    theirs = replace(
        settings,
        job=settings.job.model_copy(update={"spec": comparison_spec(settings.job.spec)}),
        below=COMPARISON,
        scratch=session.scratch / COMPARISON,
    )
    (theirs.scratch / "run").mkdir(parents=True, exist_ok=True)
    return replace(session, settings=theirs, run=Run(), reporter=LogReporter(), trackers=Trackers(theirs))


def comparison_spec(spec: FineTuneJobSpec) -> FineTuneJobSpec:
    """What is trained: the job with another method, that method's own learning rate, and without what is done with a finished adapter."""
    kept = {
        "compare_with_full": False,
        # where the best weights are chosen, they are for both
        "every_steps": spec.evaluation.every_steps if best_weights.chooses_best_weights(spec) else None,
        "forgetting": None,
    }
    return spec.model_copy(
        update={
            "method": Method(full=Full()),
            "training": spec.training.model_copy(update={"learning_rate": None}),
            "evaluation": spec.evaluation.model_copy(update=kept),
            "checkpoint": spec.checkpoint.model_copy(update={"keep": 1}),
            "output": spec.output.model_copy(update={"merged_model": False, "hub": None}),
            "tracking": Tracking(),
        }
    )


class LogReporter(Reporter):
    """Says in the log how far it is, a tenth at a time."""

    def __init__(self) -> None:
        super().__init__(None, Path())
        self._tenth = 0

    def report(self, report: ProgressReport) -> None:
        """Take note of a step."""
        progress = report.progress
        if progress.percent // 10 > self._tenth:
            self._tenth = progress.percent // 10
            log.info("full fine-tuning, to compare with: step %d of %d", progress.step, progress.total_steps)


def train_and_measure(
    whole: Session,
    train: TrainWhole,
    made: TrainedAdapter,
    evaluation: EvaluationStatus,
    measure: Measure,
    general: list[Example],
) -> ComparisonRow:
    """The row of the model that is trained whole, measured in the precision in which method full publishes one. The model lives no longer than this function."""
    _, model, _ = train(whole, partial(mark_begun, whole))
    model.zero_grad(set_to_none=True)
    model.to(device.DTYPES[device.choose_precision(whole.settings.job.spec.training)])
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    model.to(made.serving_dtype)
    device.free_memory()
    found, lost = measure(model), forgetting.loss(model, general)
    base = evaluation.base_loss
    improvement = 100 * (base - found.loss) / base if base else 0.0
    log.info("held-out loss: base %.4f, adapter %.4f, full fine-tuning %.4f", base, evaluation.loss, found.loss)
    return ComparisonRow(
        name="full",
        loss=round(found.loss, 5),
        improvement_percent=round(improvement, 2),
        perplexity=found.perplexity and round(found.perplexity, 5),
        accuracy=None if found.accuracy is None else round(found.accuracy, 5),
        general_perplexity=None if lost is None else round(perplexity(lost), 5),
        trainable_parameters=inspection.count_trainable(model),
        size_bytes=size,
        **read_costs(whole.scratch / "metrics.jsonl"),
    )


def read_costs(metrics: Path) -> dict[str, Any]:
    """Peak memory and speed of a training, over all its attempts."""
    history = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    peaks = [entry["memory_peak_bytes"] for entry in history if entry.get("memory_peak_bytes")]
    # the first one of an attempt is still warming up, and an evaluation or a checkpoint stands in some: the median is none of them
    speeds = [entry["tokens_per_second"] for entry in history if entry.get("tokens_per_second")]
    return {
        "peak_memory_bytes": max(peaks, default=None),
        "tokens_per_second": round(statistics.median(speeds), 1) if speeds else None,
    }


def weights_size(directory: Path) -> int:
    """Bytes of the weights in a model's or an adapter's directory."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def refuse_too_little_memory(session: Session) -> None:
    """Raise Failure(HOST_OUT_OF_MEMORY) where a training without a GPU cannot fit: a process that takes more than there is is killed, and cannot say so."""
    free = memory.free_bytes()
    needed = TRAINED_BYTES * (session.run.parameters.total if session.run.parameters else 0)
    if free is not None and needed > free and not device.has_gpu():
        raise Failure(
            Reason.HOST_OUT_OF_MEMORY,
            f"weights, gradients and optimizer take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free",
        )


def mark_begun(session: Session, mark: str, step: int) -> None:
    """Note that the comparison goes on from this step. Raises Failure where two earlier attempts did, and left no further checkpoint.

    So a training that kills its process, or never gets to its next checkpoint, cannot keep the adapter from being published. One attempt may have been
    interrupted before it could save anything.
    """
    place = session.settings.output.child("begun")
    names = [f"{mark.removeprefix('sha256:')[:16]}-{step}-{number}" for number in (1, 2)]
    name = next((name for name in names if head(session.output, place.child(name)) is None), None)
    if name is None:
        raise Failure(
            Reason.TRAINER_ERROR,
            f"two attempts that went on from step {step} ended without a further checkpoint, most likely for want of memory; it is not tried again",
        )
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, name).write_bytes(b"begun\n")
        upload_directory(session.output, place, Path(directory))


def explain_failure(reason: Reason, message: str, whole: Session) -> str:
    """What became of full fine-tuning, in a sentence."""
    if reason in (Reason.OUT_OF_MEMORY, Reason.HOST_OUT_OF_MEMORY):
        return f"full fine-tuning did not fit into the memory: {message}"
    if reason is Reason.LOSS_DIVERGED:
        # the advice to a user, to lower the learning rate, is none here: it is not theirs
        at = f" at step {whole.run.progress.step}" if whole.run.progress else ""
        return f"full fine-tuning diverged{at}, with its learning rate {learning_rate(whole.settings.job.spec):g}"
    return f"full fine-tuning did not come to its end: {message}"
