"""Describe the comparison of adapter and full fine-tuning: a table, a verdict and the conditions."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.comparison import Comparison, ComparisonRow
from finetune_api.sizes import format_size
from finetune_trainer.report import charts

UNKNOWN = "–"
MEASURED_ON = {
    "gpu": "Memory is the peak of PyTorch's tensors on the GPU",
    "process": "Memory is the growth of the process, since there was no GPU",
}


@dataclass(frozen=True)
class Line:
    """One line of the table: its name, and the cells of base, adapter and full fine-tuning."""

    name: str
    cells: list[str]


def build_table(comparison: Comparison) -> list[Line]:
    """Build the table; lines without any value are left out."""
    lines = [
        _build_line(comparison, "Loss", lambda row: _format_fixed(row.loss, 4)),
        _build_line(
            comparison, "Better than base", lambda row: _add_unit(_format_fixed(row.improvement_percent, 1), "%")
        ),
        _build_line(comparison, "Perplexity", lambda row: _format_short(row.perplexity)),
        _build_line(comparison, "Judged correctly", lambda row: _add_unit(_format_fixed(row.accuracy, 1, 100), "%")),
        _build_line(comparison, "Perplexity, general text", lambda row: _format_short(row.general_perplexity)),
        _build_line(comparison, "Trained parameters", lambda row: _format_short(row.trainable_parameters)),
        _build_line(comparison, "Peak memory", lambda row: _format_size(row.peak_memory_bytes)),
        _build_line(comparison, "Tokens/s", lambda row: _format_short(row.tokens_per_second)),
        _build_line(comparison, "Size on disk", lambda row: _format_size(row.size_bytes)),
    ]
    return [line for line in lines if set(line.cells) != {UNKNOWN}]


def describe_verdict(comparison: Comparison) -> str:
    """Describe the result in one sentence."""
    rows = {row.name: row for row in comparison.rows}
    adapter, full = rows["adapter"], rows["full"]
    if comparison.message is not None:
        return f"{comparison.message[0].upper()}{comparison.message[1:].rstrip('.')}."
    share = _describe_share(adapter, full)
    adapter_percent, full_percent = adapter.improvement_percent or 0.0, full.improvement_percent or 0.0
    if full_percent <= 0:
        return f"Full fine-tuning is no better than the base here{', the adapter is' if adapter_percent > 0 else ''}."
    if adapter_percent >= full_percent:
        return f"The adapter is at least as good as full fine-tuning{share}."
    if adapter_percent <= 0:
        return f"Full fine-tuning lowers the loss by {full_percent:.3g} %, the adapter does not."
    return (
        f"The adapter has {100 * adapter_percent / full_percent:.0f} % of the improvement of full fine-tuning{share}."
    )


def describe_conditions(comparison: Comparison, *, quantised: bool) -> str:
    """Describe the conditions of the measurement."""
    rate = f"that method's default learning rate {comparison.learning_rate:g}"
    costs = (
        f"{MEASURED_ON[comparison.memory]}; tokens/s are the median of the logged steps; "
        "the size is that of the weights."
    )
    if comparison.message is not None:
        return f"It was to use the adapter's data, steps, effective batch, schedule and seed, and {rate}. {costs}"
    base = " The base of full fine-tuning is not quantised." if quantised else ""
    return (
        "Both were trained on the same data with the same steps, effective batch, schedule and seed, and measured on "
        f"the same held-out rows; full fine-tuning used {rate}, which is not tuned for this data.{base} {costs} "
        "The model of full fine-tuning is not kept."
    )


def _describe_share(adapter: ComparisonRow, full: ComparisonRow) -> str:
    if not adapter.trainable_parameters or not full.trainable_parameters:
        return ""
    return f", with {100 * adapter.trainable_parameters / full.trainable_parameters:.2g} % of its trained parameters"


def _build_line(comparison: Comparison, name: str, cell: Callable[[ComparisonRow], str]) -> Line:
    return Line(name, [cell(row) for row in comparison.rows])


def _format_fixed(value: float | None, digits: int, scale: float = 1.0) -> str:
    return UNKNOWN if value is None else f"{scale * value:.{digits}f}"


def _add_unit(text: str, unit: str) -> str:
    return text if text == UNKNOWN else f"{text} {unit}"


def _format_size(number: float | None) -> str:
    return UNKNOWN if number is None else format_size(number)


def _format_short(value: float | None) -> str:
    return UNKNOWN if value is None else charts.format_number(value).replace("G", "B")
