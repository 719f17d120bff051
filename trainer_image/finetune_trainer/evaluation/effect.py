"""Judge whether a loaded adapter changes its base as the trained one did, without torch.

The effect is compared: log-probabilities with the adapter minus those without it, each in its own layout. So rounding
and quantisation of the base cancel out, and an adapter of small effect must have that same small effect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Layout = Literal["exact", "rounded", "quantized"]
"""How the fresh base differs from the one that was trained: not at all, in rounding, or in quantised weights."""
NOISE: dict[Layout, float] = {"exact": 1e-5, "rounded": 0.02, "quantized": 0.02}
"""Root mean square of what rounding changes in a log-probability, in nats."""
MAX_DEVIATION: dict[Layout, float] = {"exact": 0.05, "rounded": 0.25, "quantized": 0.5}
"""How far the share of the trained effect may be from 1."""
VISIBLE = 2.5
"""An effect is told from rounding if its root mean square is this many times as large."""
STANDARD_ERRORS = 2.0
"""How many standard errors of the share are allowed on top of the deviation."""
MIN_SHARE, MIN_CORRELATION = 0.25, 0.5
"""Share of the effect, and its correlation with the trained one, that are required however large the error is."""


@dataclass(frozen=True)
class Comparison:
    """The loaded adapter's effect beside the trained one, over the tokens of all texts.

    ``share`` is the least-squares coefficient of the shown effect on the trained one: 1 for the same adapter, 0 for one
    without effect. ``error`` is its standard error, ``trained`` the root mean square of the trained effect, and
    ``difference`` the mean difference of both effects, in nats.
    """

    share: float
    error: float
    correlation: float
    trained: float
    difference: float


def compare_effects(trained: Sequence[float], shown: Sequence[float]) -> Comparison:
    """Compare two effects: for each token a difference of log-probabilities, in nats.

    Args:
        trained: The trained adapter's effect.
        shown: The loaded adapter's effect on the same tokens.
    """
    number = len(trained)
    size = math.fsum(value * value for value in trained)
    difference = math.fsum(abs(a - b) for a, b in zip(shown, trained, strict=True)) / number
    if not size:
        return Comparison(0.0, 0.0, 0.0, 0.0, difference)
    product = math.fsum(a * b for a, b in zip(shown, trained, strict=True))
    shown_size = math.fsum(value * value for value in shown)
    share = product / size
    residual = max(shown_size - share * product, 0.0)
    error = math.sqrt(residual / (number - 1) / size) if number > 1 else 0.0
    correlation = product / math.sqrt(size * shown_size) if shown_size else 0.0
    return Comparison(share, error, correlation, math.sqrt(size / number), difference)


def is_visible(comparison: Comparison, layout: Layout) -> bool:
    """Return whether the trained effect can be told from rounding."""
    return comparison.trained > VISIBLE * NOISE[layout]


def find_mismatch(comparison: Comparison, layout: Layout) -> str | None:
    """Return what is wrong with the effect of the loaded adapter; None if it is the trained one.

    An effect that cannot be told from rounding is only required to be small in both.
    """
    noise = NOISE[layout]
    if not is_visible(comparison, layout):
        if comparison.difference <= 2 * VISIBLE * noise:
            return None
        return f"its effect differs from the trained one by {comparison.difference:.3g} nats per token"
    # rounding in the trained effect makes the share smaller (errors in variables)
    attenuation = 2 * (noise / comparison.trained) ** 2
    allowed = MAX_DEVIATION[layout] + STANDARD_ERRORS * comparison.error + attenuation
    if not max(1 - allowed, MIN_SHARE) <= comparison.share <= 1 + allowed:
        return (
            f"its effect is {comparison.share:.0%} of the trained one (standard error {comparison.error:.0%}), "
            f"allowed are {max(1 - allowed, MIN_SHARE):.0%} to {1 + allowed:.0%}"
        )
    if comparison.correlation < MIN_CORRELATION:
        return f"its effect is not the trained one: their correlation is {comparison.correlation:.2f}"
    return None
