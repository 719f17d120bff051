"""Compare the adapter with full fine-tuning on the same data (``evaluation.compareWithFull``).

An error here never costs the adapter, which is finished and has its last checkpoint in S3. It becomes a sentence in
the comparison's table.
"""

import json
import shutil
import statistics
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.comparison import Comparison, ComparisonRow
from finetune_api.finetunejob import EvaluationStatus, FineTuneJobSpec
from finetune_api.improvement import improvement_percent
from finetune_api.messages import ProgressReport
from finetune_api.methods import Full, Method
from finetune_api.reasons import Reason
from finetune_api.tracking import Tracking
from finetune_artifacts.upload import upload_directory
from finetune_trainer.checkpoints import best_weights
from finetune_trainer.data.dataset import Examples
from finetune_trainer.evaluation import forgetting
from finetune_trainer.evaluation.likelihood import perplexity
from finetune_trainer.evaluation.measures import Measure
from finetune_trainer.methods import inspection
from finetune_trainer.models import device, memory
from finetune_trainer.publish.trained_adapter import TrainedAdapter
from finetune_trainer.runtime.failures import Failure, Preempted, classify
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import COMPARISON_PREFIX
from finetune_trainer.session.plan import choose_learning_rate
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.session.session import Session
from finetune_trainer.session.tracking import Trackers
from finetune_trainer.training.choice import split_for_memory
from finetune_trainer.training.model import load_base
from finetune_trainer.training.train import train_model

BYTES_PER_WEIGHT = 16
"""Bytes for each weight that is trained in fp32: the weight, its gradient, and Adam's two moments."""
MAX_ATTEMPTS = 2
"""Attempts that continue from one step. The first may have been interrupted before it could save a checkpoint."""


def compare(
    session: Session,
    *,
    adapter: TrainedAdapter,
    evaluation: EvaluationStatus,
    measure: Measure,
    tokenizer: Any,
    examples: Examples,
) -> EvaluationStatus:
    """Return the evaluation with the rows of base, adapter and full fine-tuning.

    Raises:
        Preempted: The pod is asked to stop. No other error leaves this function.
    """
    full = full_session(session)
    message, full_row = None, ComparisonRow(name="full")
    try:
        refuse_too_little_memory(session)
        full_row = train_and_measure(
            full, adapter=adapter, evaluation=evaluation, measure=measure, tokenizer=tokenizer, examples=examples
        )
    except Preempted as error:
        raise Preempted(f"{error} (of the comparison with full fine-tuning: the adapter is trained)") from error
    except Exception as error:  # noqa: BLE001 -- whatever it is, the adapter is finished
        message = explain_failure(*classify(error), full)
        log.warning("%s", message)
        session.run.warnings.append(f"spec.evaluation.compareWithFull: {message}")
        parameters = full.run.parameters and full.run.parameters.trainable
        full_row = full_row.model_copy(update={"trainable_parameters": parameters})
    device.free_memory()
    # its checkpoints are large, and disk space may be what the training lacked
    shutil.rmtree(full.settings.scratch, ignore_errors=True)
    base_row = ComparisonRow(
        name="base",
        loss=evaluation.base_loss,
        perplexity=evaluation.base_perplexity,
        accuracy=evaluation.base_accuracy,
        general_perplexity=evaluation.forgetting and evaluation.forgetting.base_perplexity,
        trainable_parameters=0,
        size_bytes=weights_size(session.inputs.model),
    )
    adapter_row = ComparisonRow(
        name="adapter",
        loss=evaluation.loss,
        improvement_percent=evaluation.improvement_percent,
        perplexity=evaluation.perplexity,
        accuracy=evaluation.accuracy,
        general_perplexity=evaluation.forgetting and evaluation.forgetting.perplexity,
        trainable_parameters=adapter.trainable_parameters,
        size_bytes=weights_size(adapter.directory),
        **read_costs(adapter.directory / "metrics.jsonl"),
    )
    comparison = Comparison(
        learning_rate=choose_learning_rate(full.settings.job.spec),
        memory="gpu" if device.has_gpu() else "process",
        rows=[base_row, adapter_row, full_row],
        message=message,
    )
    return evaluation.model_copy(update={"comparison": comparison})


def full_session(session: Session) -> Session:
    """Return a session for the same job with method ``full`` and a storage prefix of its own.

    Its progress is only logged, because the status describes the training of the adapter.
    """
    job, scratch = session.settings.job, session.scratch / COMPARISON_PREFIX
    spec = full_spec(job.spec)
    if session.run.choice:
        spec = split_for_memory(spec, session.inputs.model)
    settings = replace(
        session.settings,
        job=job.model_copy(update={"spec": spec}),
        subprefix=COMPARISON_PREFIX,
        scratch=scratch,
    )
    (scratch / "run").mkdir(parents=True, exist_ok=True)
    return replace(session, settings=settings, run=Run(), reporter=LogReporter(), trackers=Trackers(settings))


def full_spec(spec: FineTuneJobSpec) -> FineTuneJobSpec:
    """Return the spec with method ``full`` and its default learning rate, without publishing or tracking."""
    evaluation = {
        "compare_with_full": False,
        # where the best weights are chosen, they are chosen for both
        **({} if best_weights.chooses_best_weights(spec) else {"every_steps": None, "every_epoch": False}),
        "forgetting": None,
    }
    return spec.model_copy(
        update={
            "method": Method(full=Full()),
            "training": spec.training.model_copy(update={"learning_rate": None}),
            "evaluation": spec.evaluation.model_copy(update=evaluation),
            "checkpoint": spec.checkpoint.model_copy(update={"keep": 1}),
            "output": spec.output.model_copy(update={"merged_model": False, "hub": None}),
            "tracking": Tracking(),
        }
    )


class LogReporter(Reporter):
    """Logs the progress at every tenth of the steps, and sends no report."""

    def __init__(self) -> None:
        """Start before the first tenth."""
        super().__init__(None, Path())
        self._tenth = 0

    def submit(self, report: ProgressReport) -> None:
        """Log the step if another tenth is done."""
        progress = report.progress
        if progress.percent // 10 > self._tenth:
            self._tenth = progress.percent // 10
            log.info("full fine-tuning, to compare with: step %d of %d", progress.step, progress.total_steps)


def train_and_measure(
    full: Session,
    *,
    adapter: TrainedAdapter,
    evaluation: EvaluationStatus,
    measure: Measure,
    tokenizer: Any,
    examples: Examples,
) -> ComparisonRow:
    """Train all weights of the base, and measure the model as method ``full`` would publish it.

    Its weights are rounded to the precision of the training, and then compute in the adapter's serving dtype. The model
    is freed when this function returns.
    """
    trained = train_model(
        full,
        tokenizer=tokenizer,
        examples=examples,
        take_base=partial(load_base, full, tokenizer),
        on_begin=partial(record_attempt, full),
    )
    if trained is None:
        raise Failure(Reason.TRAINER_ERROR, "the comparison runs in the main process only")
    model = trained.model
    model.zero_grad(set_to_none=True)
    model.to(device.DTYPES[device.choose_precision(full.settings.job.spec.training)])
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    model.to(adapter.serving_dtype)
    device.free_memory()
    measured, general_loss = measure(model), forgetting.measure_loss(model, examples.forgetting_text)
    base = evaluation.base_loss
    log.info("held-out loss: base %.4f, adapter %.4f, full fine-tuning %.4f", base, evaluation.loss, measured.loss)
    return ComparisonRow(
        name="full",
        loss=round(measured.loss, 5),
        improvement_percent=round(improvement_percent(base, measured.loss), 2),
        perplexity=measured.perplexity and round(measured.perplexity, 5),
        accuracy=None if measured.accuracy is None else round(measured.accuracy, 5),
        general_perplexity=None if general_loss is None else round(perplexity(general_loss), 5),
        trainable_parameters=inspection.count_trainable(model),
        size_bytes=size,
        **read_costs(full.scratch / "metrics.jsonl"),
    )


def read_costs(metrics: Path) -> dict[str, Any]:
    """Read the peak memory (bytes) and the median speed (tokens/s) of a training, over all its attempts."""
    history = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    peaks = [entry["memory_peak_bytes"] for entry in history if entry.get("memory_peak_bytes")]
    # the first step of an attempt warms up, and some steps hold an evaluation or a checkpoint: hence the median
    speeds = [entry["tokens_per_second"] for entry in history if entry.get("tokens_per_second")]
    return {
        "peak_memory_bytes": max(peaks, default=None),
        "tokens_per_second": round(statistics.median(speeds), 1) if speeds else None,
    }


def weights_size(directory: Path) -> int:
    """Return the bytes of the weights in a model's or an adapter's directory."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def refuse_too_little_memory(session: Session) -> None:
    """Refuse a full fine-tuning on a CPU that does not fit into the memory: the kernel would kill the process.

    Raises:
        Failure: HOST_OUT_OF_MEMORY.
    """
    free = memory.free_bytes()
    needed = BYTES_PER_WEIGHT * (session.run.parameters.total if session.run.parameters else 0)
    if free is not None and needed > free and not device.has_gpu():
        raise Failure(
            Reason.HOST_OUT_OF_MEMORY,
            f"weights, gradients and optimizer take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free",
        )


def record_attempt(session: Session, fingerprint: str, step: int) -> None:
    """Record in the storage that an attempt continues from ``step``, and refuse a third one from the same step.

    A training that kills its process, or never reaches its next checkpoint, must not keep the adapter from being
    published.

    Raises:
        Failure: TRAINER_ERROR after two attempts that saved no further checkpoint.
    """
    directory_uri = session.settings.output.child("begun")
    prefix = fingerprint.removeprefix("sha256:")[:16]
    names = [f"{prefix}-{step}-{number}" for number in range(1, MAX_ATTEMPTS + 1)]
    name = next((name for name in names if session.output.head(directory_uri.child(name)) is None), None)
    if name is None:
        raise Failure(
            Reason.TRAINER_ERROR,
            f"two attempts that continued from step {step} ended without a further checkpoint, most likely because "
            "the memory was too small; it is not tried again",
        )
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, name).write_bytes(b"begun\n")
        upload_directory(session.output, directory_uri, Path(directory))


def explain_failure(reason: Reason, message: str, full: Session) -> str:
    """Return a sentence on why there is no full fine-tuning to compare with."""
    if reason in (Reason.OUT_OF_MEMORY, Reason.HOST_OUT_OF_MEMORY):
        return f"full fine-tuning did not fit into the memory: {message}"
    if reason is Reason.LOSS_DIVERGED:
        # the message advises to lower the learning rate, which the user did not set here
        step = f" at step {full.run.progress.step}" if full.run.progress else ""
        rate = choose_learning_rate(full.settings.job.spec)
        return f"full fine-tuning diverged{step}, with its learning rate {rate:g}"
    return f"full fine-tuning failed: {message}"
