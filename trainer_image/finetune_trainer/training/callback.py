"""What happens beside the training loop: progress, held-out loss, divergence, checkpoints on their way to S3, and the request to stop."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.finetunejob import Progress
from finetune_api.reasons import Reason
from finetune_api.timestamps import current_timestamp
from finetune_trainer.checkpoints.best_weights import BestWeights
from finetune_trainer.checkpoints.uploads import CheckpointUploader
from finetune_trainer.distributed import process_group
from finetune_trainer.models import device
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.logs import SHOWN_AS_BAR, log
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.training.divergence import DivergenceWatch


@dataclass
class Pace:
    """How fast this attempt is: where it began, and what it last saw."""

    started: float
    first_step: int
    logged: float
    tokens: float = 0.0
    tokens_per_second: float | None = None


class TrainingCallback(TrainerCallback):
    """One callback of transformers' Trainer.

    ``losses`` is asked every ``evaluate_every`` steps, if that is set, for eval_loss and, where forgetting is measured, general_loss; ``told`` hears of
    what is logged, ``best`` of each evaluation. Where several processes train together each has its own, and all of them do the same; only the one that
    speaks for the run has an ``uploader``.
    """

    def __init__(
        self,
        run: Run,
        reporter: Reporter,
        uploader: CheckpointUploader | None,
        interruption: Interruption,
        evaluate_every: int | None,
        losses: Callable[[], dict[str, float]],
        beside_checkpoint: dict[str, bytes],
        told: Callable[[int, dict[str, Any]], None],
        best: BestWeights | None,
        watch: DivergenceWatch | None = None,
    ) -> None:
        self._run, self._reporter, self._uploader, self._interruption = run, reporter, uploader, interruption
        self._evaluate_every, self._losses, self._beside = evaluate_every, losses, beside_checkpoint
        self._told, self._best, self._watch = told, best, watch
        self._pace = Pace(time.monotonic(), 0, time.monotonic())
        self._last: dict[str, float | None] = {"loss": None, "learning_rate": None, "eval_loss": None}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._pace = Pace(time.monotonic(), state.global_step, time.monotonic())
        if self._watch:
            self._watch.see_history(state.log_history)
        self._tell(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if self._uploader:
            self._uploader.check()
        last = self._best is not None and state.global_step == state.max_steps  # the last weights may be the best
        if self._evaluate_every and (state.global_step % self._evaluate_every == 0 or last):
            losses = process_group.broadcast(self._losses())  # one number decides for all
            loss = self._last["eval_loss"] = losses["eval_loss"]
            state.log_history.append({"step": state.global_step, "epoch": state.epoch or 0.0, **losses})
            self._told(state.global_step, losses)
            log.info("step %d: held-out loss %.4f", state.global_step, loss)
            if self._best:
                self._best.record(model, state.global_step, loss)
        self._tell(state)
        if state.global_step >= state.max_steps or self._stopped:
            control.should_log = control.should_save = True
            control.should_training_stop = control.should_training_stop or self._stopped
        if process_group.any_rank(self._interruption.requested):
            self._interruption.request()
            log.info("asked to stop: saving a checkpoint of step %d", state.global_step)
            control.should_log = control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        # in fp16 a step whose gradients overflow is left out, and the loss scaled down: that is no divergence
        refuse_divergence(state.global_step, logs["loss"], None if args.fp16 else logs.get("grad_norm"))
        if self._watch:
            self._watch.see(logs["loss"])
            refuse_explosion(state.global_step, logs["loss"], self._watch)
        moment, tokens = time.monotonic(), logs.get("num_tokens", 0.0)
        if moment > self._pace.logged and "num_tokens" in logs:  # not every trainer of TRL counts them
            self._pace.tokens_per_second = (tokens - self._pace.tokens) / (moment - self._pace.logged)
        self._pace.logged, self._pace.tokens = moment, tokens
        # the Trainer has just taken this entry into its history, which goes into metrics.jsonl and the checkpoints
        state.log_history[-1] |= {
            "tokens_per_second": round(self._pace.tokens_per_second or 0.0, 1),
            "memory_bytes": memory_in_use(),
        }
        if self._run.meter and (peak := self._run.meter.peak()) is not None:
            state.log_history[-1]["memory_peak_bytes"] = peak
        self._told(state.global_step, state.log_history[-1])
        self._last["loss"], self._last["learning_rate"] = logs["loss"], logs.get("learning_rate")
        self._tell(state)
        progress = self._run.progress
        if progress:
            log.info(
                "step %d of %d (%d %%): loss %.4f, %.0f tokens/s, %s left",
                progress.step,
                progress.total_steps,
                progress.percent,
                logs["loss"],
                progress.tokens_per_second or 0.0,
                duration(progress.eta_seconds or 0),
                extra={SHOWN_AS_BAR: True},
            )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        refuse_infinite(model, state.global_step)
        at_the_end = state.global_step >= state.max_steps or self._stopped or self._interruption.requested
        if self._watch and self._watch.doubtful and not at_the_end:
            log.warning(
                "step %d: the loss has gone up: the good checkpoints are kept in place of this one", state.global_step
            )
            return
        if self._uploader is None:
            return
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self._uploader.submit(
            state.global_step,
            state.max_steps,
            checkpoint,
            {**self._beside, **(self._best.checkpoint_files() if self._best else {})},
            urgent=self._interruption.requested,
        )

    @property
    def _stopped(self) -> bool:
        return self._best is not None and self._best.stopped

    def _tell(self, state: TrainerState) -> None:
        self._run.history = state.log_history
        done, pace = state.global_step - self._pace.first_step, self._pace
        left = 0 if self._stopped else state.max_steps - state.global_step
        each = (time.monotonic() - pace.started) / done if done else None
        self._run.progress = Progress(
            step=state.global_step,
            total_steps=state.max_steps,
            percent=100 * state.global_step // max(state.max_steps, 1),
            epoch=round(state.epoch, 3) if state.epoch is not None else None,
            loss=_rounded(self._last["loss"]),
            eval_loss=_rounded(self._last["eval_loss"]),
            learning_rate=self._last["learning_rate"],
            tokens_per_second=round(pace.tokens_per_second, 1) if pace.tokens_per_second is not None else None,
            eta_seconds=round(left * each) if each is not None else None,
            gpu_memory_peak_bytes=torch.cuda.max_memory_allocated() if device.has_gpu() else None,
            updated_at=current_timestamp(),
        )
        if report := self._run.report():
            self._reporter.report(report)


def memory_in_use() -> int:
    """Bytes: of the GPU what PyTorch holds of it, without one the whole process."""
    if device.has_gpu():
        return torch.cuda.memory_reserved()
    pages = (
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        if Path("/proc/self/statm").is_file()
        else 0
    )
    return pages * os.sysconf("SC_PAGE_SIZE")


def refuse_divergence(step: int, loss: float, grad_norm: float | None) -> None:
    """Raise Failure(LOSS_DIVERGED) for a loss or a gradient that is no finite number."""
    if math.isfinite(loss) and (grad_norm is None or math.isfinite(grad_norm)):
        return
    raise Failure(
        Reason.LOSS_DIVERGED,
        f"at step {step} the loss was {loss} and the gradient norm {grad_norm}: lower it (or raise warmupRatio), and look for extreme rows in the data; the "
        "checkpoints before this step are kept",
        "spec.training.learningRate",
    )


def refuse_explosion(step: int, loss: float, watch: DivergenceWatch) -> None:
    """Raise Failure(LOSS_DIVERGED) for a loss that went up and stayed there."""
    if not watch.diverged:
        return
    raise Failure(
        Reason.LOSS_DIVERGED,
        f"at step {step} the loss was {loss:.2f}, and for {watch.bad} logged steps it has been nearer to that of a guess among the {watch.vocabulary} tokens of "
        f"the vocabulary ({math.log(watch.vocabulary):.2f}) than to its best ({watch.best:.2f}): lower it (or raise warmupRatio), and look for extreme rows in "
        "the data; the checkpoints before it went up are kept",
        "spec.training.learningRate",
    )


def refuse_infinite(model: Any, step: int) -> None:
    """Raise Failure(LOSS_DIVERGED) if a trained weight is no finite number: such a checkpoint must not replace a good one."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not torch.isfinite(weight).all():
            raise Failure(
                Reason.LOSS_DIVERGED, f"at step {step} {name} is not finite: lower it", "spec.training.learningRate"
            )


def _rounded(value: float | None) -> float | None:
    return round(value, 5) if value is not None and math.isfinite(value) else None


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
