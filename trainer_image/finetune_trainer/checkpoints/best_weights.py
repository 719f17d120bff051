"""Which step's weights are published, and when to stop before the last one: by the held-out loss.

What was seen so far, and the best weights, lie in each checkpoint: a resumed run decides as if nothing had been.
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

SEEN, WEIGHTS = "evaluations.json", "best"
"""Beside a checkpoint: what was seen, and the directory of the best weights."""


@dataclass(frozen=True)
class EvaluationHistory:
    """The evaluations so far."""

    step: int | None = None
    """The one with the lowest loss; None before the first finite one."""
    loss: float = math.inf
    without_improvement: int = 0


def chooses_best_weights(spec: FineTuneJobSpec) -> bool:
    """Whether the best evaluated step's weights are published, instead of the last ones."""
    return spec.evaluation.select_best or spec.training.early_stopping is not None


def after(seen: EvaluationHistory, step: int, loss: float, min_delta: float) -> EvaluationHistory:
    """With one more evaluation. A loss that falls by no more than ``min_delta`` is the best one, but no improvement: then the patience goes on."""
    improved = loss < seen.loss - min_delta
    waited = 0 if improved else seen.without_improvement + 1
    return (
        EvaluationHistory(step, loss, waited) if loss < seen.loss else EvaluationHistory(seen.step, seen.loss, waited)
    )


class BestWeights:
    """The best weights so far, on the disk, and whether it is time to stop."""

    def __init__(
        self, early_stopping: EarlyStopping | None, scratch: Path, resume: Path | None, *, keeps: bool = True
    ) -> None:
        """Go on from what the checkpoint in ``resume`` has seen. Of several processes one ``keeps`` the weights; all see the same."""
        self.seen = EvaluationHistory()
        self._keeps = keeps
        self._early_stopping = early_stopping
        self._weights = scratch / WEIGHTS
        if resume is not None and (resume / SEEN).is_file():
            self.seen = EvaluationHistory(**json.loads((resume / SEEN).read_text(encoding="utf-8")))
            if self.seen.step is not None and keeps:
                shutil.copytree(resume / WEIGHTS, self._weights)

    @property
    def stopped(self) -> bool:
        """Whether the patience is used up."""
        limit = self._early_stopping
        return limit is not None and self.seen.without_improvement >= limit.patience

    def evaluated(self, model: Any, step: int, loss: float) -> None:
        """Take note of an evaluation, and keep the weights if none was better."""
        minimum = self._early_stopping.min_delta if self._early_stopping else 0.0
        self.seen = after(self.seen, step, loss, minimum)
        if self.seen.step == step and self._keeps:
            # a checkpoint that is on its way may have the old files, which must not be written to
            shutil.rmtree(self._weights, ignore_errors=True)
            self._weights.mkdir(parents=True)
            exact_resume.save(model, self._weights)
        if self.stopped:
            log.info(
                "step %d: %d evaluations without improvement since step %s: stopping early",
                step,
                self.seen.without_improvement,
                self.seen.step,
            )

    def beside_checkpoint(self) -> dict[str, bytes | Path]:
        """What a checkpoint has to hold of it: contents, and files that are never written to again."""
        files = self._weights.glob("*") if self.seen.step is not None else ()
        return {SEEN: json.dumps(asdict(self.seen)).encode()} | {f"{WEIGHTS}/{path.name}": path for path in files}

    def restore(self, model: Any) -> None:
        """Put the best weights back into the model; as they are, if no evaluation was a finite number."""
        if self.seen.step is not None:
            log.info("publishing the weights of step %d, held-out loss %.4f", self.seen.step, self.seen.loss)
            exact_resume.load(model, self._weights)
