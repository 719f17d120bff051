"""Whether a training has diverged though its loss is still a number: it forgets what the base knew, and goes on burning GPU time."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec

IN_A_ROW = 5
"""So many logged losses must be bad: a spike that passes is normal (PaLM, arXiv 2204.02311, section 5.1), and goes on unnoticed."""
NATS = 2.0
"""A loss that is worse by this much has 7.4 times the perplexity."""


@dataclass
class DivergenceWatch:
    """Looks at the logged losses of one run, each the mean per token over a logging interval, in nats.

    A loss is bad if it is worse than the best by ``NATS``, and nearer to ln(vocabulary) than to the best: that is the loss of a model that knows nothing
    and gives every token the same probability. ``best`` is the lowest mean of as many losses in a row as there must be bad ones (of fewer at the start),
    so that one easy batch does not set it. Losses of objectives that compare answers have no such scale, and are not watched.
    """

    vocabulary: int
    best: float = math.inf
    bad: int = 0
    """How many of the last losses in a row were bad."""
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=IN_A_ROW))

    @property
    def limit(self) -> float:
        """From here on a loss is bad."""
        return max(self.best + NATS, (self.best + math.log(self.vocabulary)) / 2)

    @property
    def doubtful(self) -> bool:
        """Whether the last loss was bad: a checkpoint from now on must not take the place of a good one."""
        return self.bad > 0

    @property
    def diverged(self) -> bool:
        """Whether that lasts too long for a spike."""
        return self.bad >= IN_A_ROW

    def see(self, loss: float) -> None:
        """Take note of one more logged loss."""
        self.bad = self.bad + 1 if loss > self.limit else 0
        self._last.append(loss)
        self.best = min(self.best, sum(self._last) / len(self._last))

    def see_history(self, history: list[dict[str, Any]]) -> None:
        """Begin again with the log of the attempts before, which each checkpoint has: a resumed run judges as if nothing had been."""
        self.best, self.bad = math.inf, 0
        self._last.clear()
        for entry in history:
            if "loss" in entry and math.isfinite(entry["loss"]):
                self.see(entry["loss"])


def make_divergence_watch(spec: FineTuneJobSpec, tokenizer: Any) -> DivergenceWatch | None:
    """What looks at the losses of the job; None for an objective whose loss is not that of single tokens."""
    return DivergenceWatch(len(tokenizer)) if spec.objective == "sft" else None
