"""Report progress, evaluate, detect divergence and upload checkpoints: the Trainer's callback."""

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
from finetune_api.timestamps import current_timestamp, format_duration
from finetune_trainer.checkpoints.best_weights import BestWeights
from finetune_trainer.checkpoints.snapshot import take_snapshot
from finetune_trainer.checkpoints.uploads import CheckpointUploader
from finetune_trainer.distributed import process_group, random_state
from finetune_trainer.models import device
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.logs import SHOWN_AS_BAR, log
from finetune_trainer.runtime.phase_clock import CLOCK
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.training.divergence import DivergenceWatch, GradientWatch
from finetune_trainer.training.watchdog import Watchdog


@dataclass
class Pace:
    """The speed of this attempt; times are those of the monotonic clock, in seconds.

    ``started`` and ``first_step`` are the time and the step at which the attempt began; ``logged`` and ``tokens`` are
    the time and the token count of the last log entry.
    """

    started: float
    first_step: int
    logged: float
    tokens: float = 0.0
    tokens_per_second: float | None = None


class TrainingCallback(TrainerCallback):
    """The callback of transformers' Trainer. Each process has one, and all make the same decisions."""

    def __init__(
        self,
        *,
        run: Run,
        reporter: Reporter,
        interruption: Interruption,
        uploader: CheckpointUploader | None,
        checkpoint_extras: dict[str, bytes],
        save_minutes: float | None,
        eval_steps: int | None,
        evaluate: Callable[[], dict[str, float] | None],
        on_metrics: Callable[[int, dict[str, Any]], None],
        best_weights: BestWeights | None,
        divergence_watch: DivergenceWatch | None,
        watchdog: Watchdog,
    ) -> None:
        """Store the objects that the callback uses.

        Args:
            run: Receives progress and history.
            reporter: Sends the progress to the operator.
            interruption: The request to stop.
            uploader: Uploads checkpoints; only in the main process.
            checkpoint_extras: Contents of further files of each checkpoint, by name.
            save_minutes: Minutes between checkpoints; None where steps alone decide.
            eval_steps: Number of steps between evaluations; None for no evaluation.
            evaluate: Returns ``eval_loss`` and, if forgetting is measured, ``general_loss``; None if the pod is asked
                to stop meanwhile.
            on_metrics: Called with the step and its metrics, for each log entry and each evaluation.
            best_weights: Keeps the weights with the lowest loss, and decides on early stopping.
            divergence_watch: Checks the logged losses.
            watchdog: Is told of each step.
        """
        self._run, self._reporter, self._interruption = run, reporter, interruption
        self._uploader, self._checkpoint_extras = uploader, checkpoint_extras
        self._eval_steps, self._evaluate, self._on_metrics = eval_steps, evaluate, on_metrics
        self._best, self._watch, self._watchdog = best_weights, divergence_watch, watchdog
        self._gradients = GradientWatch()
        self._save_seconds = None if save_minutes is None else 60 * save_minutes
        self._saved = time.monotonic()
        self._pace = Pace(time.monotonic(), 0, time.monotonic())
        self._last: dict[str, float | None] = {"loss": None, "learning_rate": None, "eval_loss": None}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock; replay the losses of earlier attempts."""
        self._saved = time.monotonic()
        self._pace = Pace(self._saved, state.global_step, self._saved)
        if self._watch:
            self._watch.replay_history(state.log_history)
        self._gradients.replay_history(state.log_history)
        self._report_progress(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Report progress, evaluate if it is due, and stop if that was requested."""
        self._watchdog.step()
        if self._uploader:
            self._uploader.check()
        if self.lacks_evaluation(state):
            self.evaluate(state, model)
        self._report_progress(state)
        if self._is_checkpoint_due():
            control.should_log = control.should_save = True
        if state.global_step >= state.max_steps or self.stopped:
            control.should_log = control.should_save = True
            control.should_training_stop = control.should_training_stop or self.stopped
        if process_group.any_rank(self._interruption.requested):
            self._interruption.request()
            log.info("asked to stop: saving a checkpoint of step %d", state.global_step)
            control.should_log = control.should_save = control.should_training_stop = True

    def _is_checkpoint_due(self) -> bool:
        """Return whether the minutes between two checkpoints are over, by the clock of the main process."""
        if self._save_seconds is None:
            return False
        due: bool = process_group.broadcast(time.monotonic() - self._saved >= self._save_seconds)
        return due

    def lacks_evaluation(self, state: TrainerState) -> bool:
        """Return whether the step is still to be evaluated: it is due, and its evaluation was not finished."""
        step = state.global_step
        last = self._best is not None and step == state.max_steps  # its weights may be the best
        due = self._eval_steps is not None and step > 0 and (step % self._eval_steps == 0 or last)
        return due and not any(entry.get("step") == step and "eval_loss" in entry for entry in state.log_history)

    def evaluate(self, state: TrainerState, model: Any) -> None:
        """Measure the losses of the step. If the pod is asked to stop meanwhile, the next attempt does it."""
        with CLOCK.spend("evaluate"):
            losses = process_group.broadcast(self._evaluate())  # every process decides by the same numbers
        if losses is None:
            log.info("step %d: asked to stop, so the next attempt evaluates it", state.global_step)
            return
        loss = self._last["eval_loss"] = losses["eval_loss"]
        state.log_history.append({"step": state.global_step, "epoch": state.epoch or 0.0, **losses})
        self._on_metrics(state.global_step, losses)
        log.info("step %d: held-out loss %.4f", state.global_step, loss)
        if self._best:
            self._best.record(model, state.global_step, loss)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Check the logged loss, and pass the metrics on."""
        if not logs or "loss" not in logs:
            return
        # In fp16 gradients may overflow: the step is skipped and the loss scale lowered, which is not a divergence.
        check_loss_is_finite(state.global_step, logs["loss"], None if args.fp16 else logs.get("grad_norm"))
        if self._watch:
            self._watch.add_loss(logs["loss"])
            check_convergence(state.global_step, logs["loss"], self._watch)
        self._gradients.add_norm(logs.get("grad_norm"))
        check_gradient(state.global_step, self._gradients)
        moment, tokens = time.monotonic(), logs.get("num_tokens", 0.0)
        if moment > self._pace.logged and "num_tokens" in logs:  # not every trainer of TRL counts tokens
            self._pace.tokens_per_second = (tokens - self._pace.tokens) / (moment - self._pace.logged)
        self._pace.logged, self._pace.tokens = moment, tokens
        # the Trainer has just added this entry to its history, which goes into metrics.jsonl and the checkpoints
        state.log_history[-1] |= {
            "tokens_per_second": round(self._pace.tokens_per_second or 0.0, 1),
            "memory_bytes": measure_memory(),
        }
        if self._run.memory_meter and (peak := self._run.memory_meter.peak()) is not None:
            state.log_history[-1]["memory_peak_bytes"] = peak
        self._on_metrics(state.global_step, state.log_history[-1])
        self._last["loss"], self._last["learning_rate"] = logs["loss"], logs.get("learning_rate")
        self._report_progress(state)
        progress = self._run.progress
        if progress:
            log.info(
                "step %d of %d (%d %%): loss %.4f, %.0f tokens/s, %s left",
                progress.step,
                progress.total_steps,
                progress.percent,
                logs["loss"],
                progress.tokens_per_second or 0.0,
                format_duration(progress.eta_seconds or 0),
                extra={SHOWN_AS_BAR: True},
            )

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """Check the weights, and save the checkpoint, beside the training where main memory has room for a copy."""
        self._saved = time.monotonic()
        with CLOCK.spend("checkpoint"):
            check_weights_are_finite(model, state.global_step)
            random_states = process_group.gather(random_state.current_state())
            at_the_end = state.global_step >= state.max_steps or self.stopped or self._interruption.requested
            if self._watch and self._watch.last_loss_was_bad and not at_the_end:
                log.warning(
                    "step %d: the loss has risen: this checkpoint is not saved, the earlier ones are kept",
                    state.global_step,
                )
            elif self._uploader is not None:
                self._uploader.submit(
                    lambda: take_snapshot(model, optimizer, lr_scheduler, state, random_states),
                    {**self._checkpoint_extras, **(self._best.checkpoint_files() if self._best else {})},
                    urgent=self._interruption.requested,
                )

    @property
    def stopped(self) -> bool:
        """Return whether the early stop has ended the training."""
        return self._best is not None and self._best.stopped

    def _report_progress(self, state: TrainerState) -> None:
        self._run.history = state.log_history
        steps_done, pace = state.global_step - self._pace.first_step, self._pace
        steps_left = 0 if self.stopped else state.max_steps - state.global_step
        step_seconds = (time.monotonic() - pace.started) / steps_done if steps_done else None
        self._run.progress = Progress(
            step=state.global_step,
            total_steps=state.max_steps,
            percent=100 * state.global_step // max(state.max_steps, 1),
            epoch=round(state.epoch, 3) if state.epoch is not None else None,
            loss=_round(self._last["loss"]),
            eval_loss=_round(self._last["eval_loss"]),
            learning_rate=self._last["learning_rate"],
            tokens_per_second=round(pace.tokens_per_second, 1) if pace.tokens_per_second is not None else None,
            eta_seconds=round(steps_left * step_seconds) if step_seconds is not None else None,
            gpu_memory_peak_bytes=torch.cuda.max_memory_reserved() if device.has_gpu() else None,
            updated_at=current_timestamp(),
        )
        if report := self._run.progress_report():
            self._reporter.submit(report)


def measure_memory() -> int:
    """Return the bytes that PyTorch reserves on the GPU or, without one, that the process uses."""
    if device.has_gpu():
        return torch.cuda.memory_reserved()
    pages = (
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        if Path("/proc/self/statm").is_file()
        else 0
    )
    return pages * os.sysconf("SC_PAGE_SIZE")


def check_loss_is_finite(step: int, loss: float, grad_norm: float | None) -> None:
    """Check that loss and gradient norm are finite.

    Raises:
        Failure: LOSS_DIVERGED: one is not.
    """
    if math.isfinite(loss) and (grad_norm is None or math.isfinite(grad_norm)):
        return
    raise Failure(
        Reason.LOSS_DIVERGED,
        f"at step {step} the loss was {loss} and the gradient norm {grad_norm}: lower it (or raise warmupRatio), and "
        "look for extreme rows in the data; the checkpoints before this step are kept",
        "spec.training.learningRate",
    )


def check_convergence(step: int, loss: float, watch: DivergenceWatch) -> None:
    """Check that the loss has not risen and stayed high.

    Raises:
        Failure: LOSS_DIVERGED: it has.
    """
    if not watch.diverged:
        return
    raise Failure(
        Reason.LOSS_DIVERGED,
        f"at step {step} the loss was {loss:.2f}: for {watch.bad_in_a_row} logged steps it has been nearer to that of "
        f"a guess among the {watch.vocabulary} tokens of the vocabulary ({math.log(watch.vocabulary):.2f}) than to its "
        f"best ({watch.best:.2f}): lower it (or raise warmupRatio), and look for extreme rows in the data; the "
        "checkpoints before the loss rose are kept",
        "spec.training.learningRate",
    )


def check_gradient(step: int, watch: GradientWatch) -> None:
    """Check that the run learns anything.

    Raises:
        Failure: MODEL_UNSUPPORTED: no gradient has reached a trained weight so far.
    """
    if watch.is_dead:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"up to step {step} every logged gradient was exactly 0: the loss does not depend on the weights that are "
            "trained, so that nothing is learned. Adapt other layers; if gradientCheckpointing is on, try never",
            "spec.method",
        )


def check_weights_are_finite(model: Any, step: int) -> None:
    """Check that all trained weights of this checkpoint are finite.

    Raises:
        Failure: LOSS_DIVERGED: a weight is not.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad and not torch.isfinite(weight).all():
            raise Failure(
                Reason.LOSS_DIVERGED, f"at step {step} {name} is not finite: lower it", "spec.training.learningRate"
            )


def _round(value: float | None) -> float | None:
    return round(value, 5) if value is not None and math.isfinite(value) else None
