"""Write the model card: ``README.md`` with the hub's YAML front matter and a text for people."""

import re
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_trainer.report import charts, comparison, serving
from finetune_trainer.report.contents import Report


def render_card(report: Report) -> str:
    """Render the model card."""
    environment = Environment(  # noqa: S701 -- Markdown: users' texts are in fences that ``fence`` makes long enough
        loader=PackageLoader("finetune_trainer.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"fenced": fence, "short": charts.format_number, "cell": escape_cell}
    front = yaml.safe_dump(build_metadata(report), sort_keys=False, allow_unicode=True).strip()
    return environment.get_template("card.md.j2").render(
        front=front,
        report=report,
        comparison=comparison,
        chosen=[setting for setting in report.settings if setting.origin != "default"],
        serving_commands=serving.list_serving_commands(report),
        load_snippet=serving.build_load_snippet(report),
        merge_snippet=serving.build_merge_snippet(report),
    )


def build_metadata(report: Report) -> dict[str, Any]:
    """Build the YAML front matter.

    It names a model or dataset only if it is on the hub, which refuses other names.
    """
    front: dict[str, Any] = {}
    if report.base_on_hub:
        front["base_model"] = report.base_model
    front["library_name"] = "transformers" if report.peft_type == "FULL" else "peft"
    if report.license:
        front["license"] = report.license
    task = "text-classification" if report.objective == "reward" else "text-generation"
    front["pipeline_tag"] = task
    front["tags"] = ["finetune-operator", report.method, report.objective]
    if report.base_on_hub:
        relation = "finetune" if report.peft_type == "FULL" else "adapter"
        front["tags"].append(f"base_model:{relation}:{report.base_model}")
    dataset = report.dataset.removeprefix("hf://")
    if dataset != report.dataset:
        front["datasets"] = [dataset]
    evaluation = report.evaluation
    metrics: list[dict[str, Any]] = [{"type": "loss", "value": evaluation.loss, "name": "Held-out loss"}]
    if evaluation.perplexity is not None:
        value = float(f"{evaluation.perplexity:.4g}")
        metrics.append({"type": "perplexity", "value": value, "name": "Held-out perplexity"})
    if evaluation.accuracy is not None:
        metrics.append({"type": "accuracy", "value": evaluation.accuracy, "name": "Held-out accuracy"})
    front["metrics"] = [metric["type"] for metric in metrics]
    result = {
        "task": {"type": task},
        "dataset": {"name": "held-out rows", "type": dataset if dataset != report.dataset else "custom"},
        "metrics": metrics,
    }
    front["model-index"] = [{"name": report.name, "results": [result]}]
    return front


def fence(text: str, language: str = "") -> str:
    """Put a text into a code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def escape_cell(text: str) -> str:
    """Escape a text for a table's cell: one line, without the special characters of Markdown and HTML."""
    plain = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", plain)
