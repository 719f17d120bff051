"""Lay out curves as SVG coordinates, each with a description for people who cannot see it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

WIDTH, HEIGHT = 360.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 10.0, 10.0, 24.0
MOST_POINTS = 150
"""Longer series are averaged in pieces, because more points cannot be seen and would only enlarge the file."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """One measured value, and the text that is shown when the pointer is over it."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: list[Point]
    dotted: bool = False

    @property
    def path(self) -> str:
        """Return the ``d`` attribute of the SVG path."""
        return "M" + "L".join(f"{point.x:.1f} {point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class Chart:
    """Curves over the steps of the training; ``marks`` are the positions where an attempt resumed."""

    title: str
    unit: str
    summary: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Series:
    """Values by step."""

    name: str
    values: list[tuple[int, float]]
    dotted: bool = False


def make_chart(
    title: str, unit: str, series: Sequence[Series], marks: Sequence[int], *, from_zero: bool
) -> Chart | None:
    """Lay out the curves; None if no series has values."""
    drawn = [Series(line.name, thin_out(line.values), line.dotted) for line in series if line.values]
    if not drawn:
        return None
    values = [value for line in drawn for _, value in line.values]
    steps = [step for line in drawn for step, _ in line.values]
    y_ticks = choose_ticks(0.0 if from_zero else min(values), max(values), 4)
    x_ticks = [tick for tick in choose_ticks(0.0, float(max(steps)), 4) if tick.is_integer()]
    right = max(float(max(steps)), 1.0)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / right

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]))

    lines = [
        Line(
            line.name,
            [
                Point(x(step), y(value), f"step {step}: {line.name} {format_number(value)} {unit}".strip())
                for step, value in line.values
            ],
            line.dotted,
        )
        for line in drawn
    ]
    return Chart(
        title,
        unit,
        ". ".join(summarize(line, unit) for line in drawn),
        lines,
        [Tick(x(tick), label) for tick, label in zip(x_ticks, label_ticks(x_ticks), strict=True) if tick <= right],
        [Tick(y(tick), label) for tick, label in zip(y_ticks, label_ticks(y_ticks), strict=True)],
        [x(step) for step in marks],
    )


def summarize(series: Series, unit: str) -> str:
    """Describe a curve in one sentence."""
    (first, begin), (last, end) = series.values[0], series.values[-1]
    values = [value for _, value in series.values]
    ends = f"{series.name}: {format_number(begin)} at step {first}, {format_number(end)} at step {last}"
    return f"{ends}, between {format_number(min(values))} and {format_number(max(values))} {unit}".strip()


def thin_out(values: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average neighbours to at most ``MOST_POINTS`` values, each at the last step of its piece."""
    size = -(-len(values) // MOST_POINTS)
    pieces = [values[start : start + size] for start in range(0, len(values), size)] if size > 1 else []
    return [(piece[-1][0], sum(value for _, value in piece) / len(piece)) for piece in pieces] or values


def choose_ticks(low: float, high: float, count: int) -> list[float]:
    """Choose at least two round numbers that span ``low`` to ``high``.

    Args:
        low: Lowest value.
        high: Highest value.
        count: Approximate number of intervals.
    """
    if not high > low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * index:.10g}") for index in range(first, last + 1)]


def label_ticks(ticks: Sequence[float]) -> list[str]:
    """Format ticks, with as many digits as it takes to distinguish them."""
    labels = [format_number(tick) for tick in ticks]
    for digits in range(4, 10):
        if len(set(labels)) == len(labels):
            break
        labels = [f"{tick:.{digits}g}" for tick in ticks]
    return labels


def format_number(value: float) -> str:
    """Format a number in few characters: ``1234``, ``12.5k``, ``0.35``, ``2e-4``."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.01:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1e9:
        return f"{value / 1e9:.3g}G"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.0f}" if size >= 1000 else f"{value:.3g}" if size < 100 else f"{value:.0f}"


def select_values(history: list[dict[str, Any]], key: str, scale: float = 1.0) -> list[tuple[int, float]]:
    """Return the finite values that were logged under a name, each with its step, divided by ``scale``."""
    values = [(int(entry["step"]), float(entry[key]) / scale) for entry in history if entry.get(key) is not None]
    return [(step, value) for step, value in values if math.isfinite(value)]


def add_endpoints(history: list[dict[str, Any]], key: str, base: float, adapter: float) -> list[tuple[int, float]]:
    """Add the values of base and finished adapter before and after those measured during the training."""
    training = select_values(history, "loss")
    last = training[-1][0] if training else 1
    return [(0, base), *[point for point in select_values(history, key) if 0 < point[0] < last], (last, adapter)]


def make_forgetting_chart(
    history: list[dict[str, Any]], base_loss: float, loss: float, resumed_at: Sequence[int]
) -> Chart | None:
    """Chart the loss on the general text against the base's; None if the training did not measure it."""
    if not select_values(history, "general_loss"):
        return None
    adapter = add_endpoints(history, "general_loss", base_loss, loss)
    base = [(step, base_loss) for step, _ in (adapter[0], adapter[-1])]
    lines = [Series("adapter", adapter), Series("base", base, dotted=True)]
    return make_chart("Loss on a general text", "nats per token", lines, resumed_at, from_zero=False)


def make_charts(
    history: list[dict[str, Any]],
    held_out_losses: tuple[float, float] | None,
    resumed_at: Sequence[int],
    objective: str,
) -> list[Chart]:
    """Chart the curves that a run measured.

    Args:
        history: The logged entries.
        held_out_losses: Those of base and adapter; None for a run that was not verified.
        resumed_at: Steps at which an attempt resumed.
        objective: The job's objective.
    """
    values_of = partial(select_values, history)
    held_out = add_endpoints(history, "eval_loss", *held_out_losses) if held_out_losses else values_of("eval_loss")
    memory = [value for _, value in values_of("memory_bytes")]
    scale, unit = (1e9, "GB") if memory and max(memory) >= 1e9 else (1e6, "MB")
    charts = [
        make_chart(
            "Loss",
            "nats per token" if objective == "sft" else "",
            [Series("training", values_of("loss")), Series("held out", held_out, True)],
            resumed_at,
            from_zero=False,
        ),
        make_chart(
            "Learning rate", "", [Series("learning rate", values_of("learning_rate"))], resumed_at, from_zero=True
        ),
        make_chart("Gradient norm", "", [Series("gradient norm", values_of("grad_norm"))], resumed_at, from_zero=True),
        make_chart("Speed", "tokens/s", [Series("speed", values_of("tokens_per_second"))], resumed_at, from_zero=True),
        make_chart("Memory", unit, [Series("memory", values_of("memory_bytes", scale))], resumed_at, from_zero=True),
    ]
    return [chart for chart in charts if chart]
