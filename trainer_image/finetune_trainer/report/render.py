"""``report.html``: one file that needs nothing else, on any screen. Everything that users wrote is escaped by the template engine."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_trainer.report import charts, comparison, serving
from finetune_trainer.report.contents import Data, Failed, Report
from finetune_trainer.runtime.effective_settings import DEFAULT

FEW_ROWS = 20
"""Fewer held-out sequences than this say little."""


def render(report: Report) -> str:
    """The whole document of a run that is done."""
    evaluation = report.evaluation
    forgetting = evaluation.forgetting
    steps = resumed_at(report)
    return document(
        "report.html.j2",
        report,
        comparison=comparison,
        better=evaluation.loss < evaluation.base_loss,
        few=evaluation.rows < FEW_ROWS,
        unit="nats per token" if report.objective == "sft" else f"of {report.objective}",
        forgetting=forgetting and charts.forgetting(report.history, forgetting.base_loss, forgetting.loss, steps),
        charts=charts.curves(report.history, (evaluation.base_loss, evaluation.loss), steps, report.objective),
        vllm_command=serving.vllm_command(report),
        deployment=serving.deployment(report),
        load_snippet=serving.load_snippet(report),
        merge_snippet=serving.merge_snippet(report),
        longest_bar=longest_bar(report.data),
    )


def render_failed(report: Failed) -> str:
    """The whole document of an attempt that failed."""
    return document(
        "failed.html.j2",
        report,
        charts=charts.curves(report.history, None, resumed_at(report), report.objective),
        longest_bar=longest_bar(report.data) if report.data else 1,
    )


def document(name: str, report: Report | Failed, **values: Any) -> str:
    """A template, filled in."""
    environment = Environment(
        loader=PackageLoader("finetune_trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = charts.number
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template(name).render(
        report=report,
        chosen=[setting for setting in report.settings if setting.origin != DEFAULT],
        defaults=[setting for setting in report.settings if setting.origin == DEFAULT],
        box=charts,
        **values,
    )


def resumed_at(report: Report | Failed) -> list[int]:
    """The steps from which attempts went on."""
    return [attempt.resumed_from for attempt in report.attempts if attempt.resumed_from]


def longest_bar(data: Data) -> int:
    """What the bars of a histogram are measured by."""
    return max((bar.count for bar in data.lengths), default=0) or 1
