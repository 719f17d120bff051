"""Detect a training that has diverged although its loss is still finite, and one that learns nothing."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec

BAD_LOSSES_IN_A_ROW = 5
"""Bad losses in a row that count as divergence; shorter spikes are normal (PaLM, arXiv 2204.02311, section 5.1)."""
BAD_BY_NATS = 2.0
"""Nats by which a bad loss is at least higher than the best: 7.4 times its perplexity."""
ZEROS_AT_THE_BEGIN = 10
"""How many logged gradients from the first one on must be exactly 0 for the run to be ended."""


@dataclass
class DivergenceWatch:
    """Judges the logged losses of one run: each the mean per token over a logging interval, in nats.

    A loss is bad if it is higher than the best by ``BAD_BY_NATS`` and nearer to ln(vocabulary) than to the best.
    ln(vocabulary) is the loss of a model that gives every token the same probability. ``best`` is the lowest mean of
    ``BAD_LOSSES_IN_A_ROW`` losses in a row (of fewer at the start), so that one easy batch does not set it. Losses of
    objectives that compare answers have no such scale, and are not watched.
    """

    vocabulary: int
    best: float = math.inf
    bad_in_a_row: int = 0
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=BAD_LOSSES_IN_A_ROW))

    @property
    def bad_from(self) -> float:
        """Return the loss above which a loss is bad."""
        return max(self.best + BAD_BY_NATS, (self.best + math.log(self.vocabulary)) / 2)

    @property
    def last_loss_was_bad(self) -> bool:
        """Return whether the last loss was bad, so that a checkpoint must not replace a good one."""
        return self.bad_in_a_row > 0

    @property
    def diverged(self) -> bool:
        """Return whether there are more bad losses in a row than a spike has."""
        return self.bad_in_a_row >= BAD_LOSSES_IN_A_ROW

    def add_loss(self, loss: float) -> None:
        """Add one logged loss."""
        self.bad_in_a_row = self.bad_in_a_row + 1 if loss > self.bad_from else 0
        self._last.append(loss)
        self.best = min(self.best, sum(self._last) / len(self._last))

    def replay_history(self, history: list[dict[str, Any]]) -> None:
        """Start again from a checkpoint's log, so that a resumed run judges like an uninterrupted one."""
        self.best, self.bad_in_a_row = math.inf, 0
        self._last.clear()
        for entry in history:
            if "loss" in entry and math.isfinite(entry["loss"]):
                self.add_loss(entry["loss"])


@dataclass
class GradientWatch:
    """Judges the logged gradient norms of one run: a run in which all are exactly 0 has never learned anything.

    Zeros after other values are normal: an example that the model knows by heart has a gradient of 0.
    """

    zeros: int = 0
    has_learned: bool = False

    @property
    def is_dead(self) -> bool:
        """Return whether there have been only zeros, and enough of them."""
        return not self.has_learned and self.zeros >= ZEROS_AT_THE_BEGIN

    def add_norm(self, norm: float | None) -> None:
        """Add one logged gradient norm; None if there is none."""
        self.zeros += norm == 0.0
        self.has_learned |= norm not in (None, 0.0)

    def replay_history(self, history: list[dict[str, Any]]) -> None:
        """Start again from a checkpoint's log, so that a resumed run judges like an uninterrupted one."""
        self.zeros, self.has_learned = 0, False
        for entry in history:
            self.add_norm(entry.get("grad_norm"))


def make_divergence_watch(spec: FineTuneJobSpec, tokenizer: Any) -> DivergenceWatch | None:
    """Make the job's watch; None for an objective whose loss is not that of single tokens."""
    return DivergenceWatch(len(tokenizer)) if spec.objective == "sft" else None
