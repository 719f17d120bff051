"""Render ``report.html``: one self-contained file in which all users' texts are escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_trainer.report import charts, comparison, serving
from finetune_trainer.report.contents import DataShape, FailedReport, Report
from finetune_trainer.runtime.effective_settings import DEFAULT

FEW_ROWS = 20
"""With fewer held-out sequences, the report warns that the numbers are only an indication."""


def render_report(report: Report) -> str:
    """Render the report of a finished run."""
    evaluation = report.evaluation
    forgetting = evaluation.forgetting
    steps = list_resumed_steps(report)
    return fill_template(
        "report.html.j2",
        report,
        comparison=comparison,
        better=evaluation.loss < evaluation.base_loss,
        few=evaluation.rows < FEW_ROWS,
        unit="nats per token" if report.objective == "sft" else f"of {report.objective}",
        forgetting=forgetting
        and charts.make_forgetting_chart(report.history, forgetting.base_loss, forgetting.loss, steps),
        charts=charts.make_charts(report.history, (evaluation.base_loss, evaluation.loss), steps, report.objective),
        serving_commands=serving.list_serving_commands(report),
        deployment=serving.build_deployment(report),
        load_snippet=serving.build_load_snippet(report),
        merge_snippet=serving.build_merge_snippet(report),
        longest_bar=find_longest_bar(report.data),
    )


def render_failed(report: FailedReport) -> str:
    """Render the report of a failed attempt."""
    return fill_template(
        "failed.html.j2",
        report,
        charts=charts.make_charts(report.history, None, list_resumed_steps(report), report.objective),
        longest_bar=find_longest_bar(report.data) if report.data else 1,
    )


def fill_template(name: str, report: Report | FailedReport, **values: Any) -> str:
    """Fill in a template."""
    environment = Environment(
        loader=PackageLoader("finetune_trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = charts.format_number
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template(name).render(
        report=report,
        chosen=[setting for setting in report.settings if setting.origin != DEFAULT],
        defaults=[setting for setting in report.settings if setting.origin == DEFAULT],
        box=charts,
        **values,
    )


def list_resumed_steps(report: Report | FailedReport) -> list[int]:
    """List the steps at which attempts resumed."""
    return [attempt.resumed_from for attempt in report.attempts if attempt.resumed_from]


def find_longest_bar(data: DataShape) -> int:
    """Return the count of the longest bar, at least 1."""
    return max((bar.count for bar in data.lengths), default=0) or 1
