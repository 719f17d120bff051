"""``report.html``: one file that needs nothing else, on any screen. Everything that users wrote is escaped by the template engine."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_trainer.report import charts, comparison, serving
from finetune_trainer.report.contents import Report
from finetune_trainer.report.origins import DEFAULT

FEW_ROWS = 20
"""Fewer held-out sequences than this say little."""


def render(report: Report) -> str:
    """The whole document."""
    environment = Environment(
        loader=PackageLoader("finetune_trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = charts.number
    environment.filters["count"] = lambda value: f"{value:,}"
    resumed_at = [attempt.resumed_from for attempt in report.attempts if attempt.resumed_from]
    evaluation = report.evaluation
    return environment.get_template("report.html.j2").render(
        report=report,
        comparison=comparison,
        better=evaluation.loss < evaluation.base_loss,
        few=evaluation.rows < FEW_ROWS,
        unit="nats per token" if report.objective == "sft" else f"of {report.objective}",
        forgetting=evaluation.forgetting
        and charts.forgetting(report.history, evaluation.forgetting.base_loss, evaluation.forgetting.loss, resumed_at),
        charts=charts.curves(report.history, (evaluation.base_loss, evaluation.loss), resumed_at, report.objective),
        chosen=[setting for setting in report.settings if setting.origin != DEFAULT],
        defaults=[setting for setting in report.settings if setting.origin == DEFAULT],
        vllm_command=serving.vllm_command(report),
        deployment=serving.deployment(report),
        load_snippet=serving.load_snippet(report),
        merge_snippet=serving.merge_snippet(report),
        longest_bar=max((bar.count for bar in report.data.lengths), default=0) or 1,
        box=charts,
    )
