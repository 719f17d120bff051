"""Choose the step whose weights are published, and when to stop early, by the held-out loss.

The evaluations so far and the best weights lie in each checkpoint, so that a resumed run decides the same.
"""

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_api.early_stopping import EarlyStopping
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.checkpoints import exact_resume
from finetune_trainer.runtime.logs import log

EVALUATIONS_FILE, WEIGHTS_DIRECTORY = "evaluations.json", "best"
"""The evaluations so far, and the best weights, beside a checkpoint."""


@dataclass(frozen=True)
class EvaluationHistory:
    """The evaluations so far. ``step`` is the one with the lowest loss; None before the first finite loss."""

    step: int | None = None
    loss: float = math.inf
    without_improvement: int = 0


def chooses_best_weights(spec: FineTuneJobSpec) -> bool:
    """Return whether the weights of the best evaluated step are published, instead of the last ones."""
    return spec.evaluation.select_best or spec.training.early_stopping is not None


def add_evaluation(history: EvaluationHistory, step: int, loss: float, min_delta: float) -> EvaluationHistory:
    """Return the history with one more evaluation.

    A loss that falls by no more than ``min_delta`` is the best one, but counts as no improvement.
    """
    improved = loss < history.loss - min_delta
    without = 0 if improved else history.without_improvement + 1
    if loss < history.loss:
        return EvaluationHistory(step, loss, without)
    return EvaluationHistory(history.step, history.loss, without)


class BestWeights:
    """The best weights so far, on the local disk, and whether to stop early."""

    def __init__(
        self, early_stopping: EarlyStopping | None, scratch: Path, resume: Path | None, *, keeps: bool = True
    ) -> None:
        """Continue the evaluations of the checkpoint in ``resume``, if there is one.

        All processes see the same evaluations; only the process with ``keeps`` set stores the weights on its disk.
        """
        self.history = EvaluationHistory()
        self._keeps = keeps
        self._early_stopping = early_stopping
        self._weights = scratch / WEIGHTS_DIRECTORY
        if resume is not None and (resume / EVALUATIONS_FILE).is_file():
            self.history = EvaluationHistory(**json.loads((resume / EVALUATIONS_FILE).read_text(encoding="utf-8")))
            if self.history.step is not None and keeps:
                shutil.copytree(resume / WEIGHTS_DIRECTORY, self._weights)

    @property
    def stopped(self) -> bool:
        """Return whether the patience of the early stop is used up."""
        limit = self._early_stopping
        return limit is not None and self.history.without_improvement >= limit.patience

    def record(self, model: Any, step: int, loss: float) -> None:
        """Record the held-out loss of a step, and keep the model's weights if the loss is the lowest so far."""
        minimum = self._early_stopping.min_delta if self._early_stopping else 0.0
        self.history = add_evaluation(self.history, step, loss, minimum)
        if self.history.step == step and self._keeps:
            # an upload may still read the old files, which must not be written to
            shutil.rmtree(self._weights, ignore_errors=True)
            self._weights.mkdir(parents=True)
            exact_resume.write(exact_resume.collect(model), self._weights)
        if self.stopped:
            log.info(
                "step %d: %d evaluations without improvement since step %s: stopping early",
                step,
                self.history.without_improvement,
                self.history.step,
            )

    def checkpoint_files(self) -> dict[str, bytes | Path]:
        """Return the files that a checkpoint adds, by name: their content, or a path whose file never changes."""
        files = self._weights.glob("*") if self.history.step is not None else ()
        return {EVALUATIONS_FILE: json.dumps(asdict(self.history)).encode()} | {
            f"{WEIGHTS_DIRECTORY}/{path.name}": path for path in files
        }

    def restore(self, model: Any) -> None:
        """Load the best weights into the model; leave it as it is if no evaluation was a finite number."""
        if self.history.step is not None:
            log.info("publishing the weights of step %d, held-out loss %.4f", self.history.step, self.history.loss)
            exact_resume.load(model, self._weights)
