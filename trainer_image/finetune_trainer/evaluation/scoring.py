"""Score base and adapter on the held-out rows and the general text: what takes time in the final evaluation.

Where several processes evaluate together, each scores a part of the batches: then these are collective calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.uris import StorageUri
from finetune_trainer.data.dataset import Example
from finetune_trainer.evaluation import forgetting
from finetune_trainer.evaluation.base_scores import BaseScores, BaseScoreStore
from finetune_trainer.evaluation.measures import HeldOutMetrics, Measure


@dataclass(frozen=True)
class Scoring:
    """The models that are scored, and how.

    ``reference`` is the directory of the adapter that, on the base, is the reference; None if the base itself is.
    ``load_base`` loads a model from a directory. ``measure`` measures a model on the held-out rows; the first model
    that it measures is its reference. ``base_scores`` keeps the base's scores for later attempts. ``forgetting_text``
    is empty if forgetting is not measured.
    """

    base_directory: Path
    adapter: Path
    reference: Path | None
    load_base: Callable[[Path], Any]
    measure: Measure
    base_scores: BaseScoreStore
    forgetting_text: list[Example]

    def score_base(self, base: Any, file: StorageUri | None) -> tuple[HeldOutMetrics, float | None]:
        """Return the base's metrics, and its loss on the general text.

        Args:
            base: The base.
            file: Where its scores are kept; None in a worker, or if they are not kept.
        """
        scores = self.base_scores.load_or_compute(
            file,
            lambda: BaseScores(
                held_out=self.measure.score(base), general_loss=forgetting.measure_loss(base, self.forgetting_text)
            ),
        )
        return self.measure.judge(scores.held_out), scores.general_loss

    def score_tuned(self, tuned: Any) -> tuple[HeldOutMetrics, float | None]:
        """Return the metrics of the base with its adapter, and its loss on the general text."""
        general_loss = forgetting.measure_loss(tuned, self.forgetting_text)
        return self.measure(tuned), general_loss
