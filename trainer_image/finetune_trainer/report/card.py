"""``README.md`` as the model hub expects it: facts for its search in front, then what a person wants to know."""

import re
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_trainer.report import charts, comparison, serving
from finetune_trainer.report.contents import Report


def render(report: Report) -> str:
    """The whole file."""
    environment = Environment(  # noqa: S701 -- Markdown: what users wrote stands in fences, which ``fenced`` makes long enough
        loader=PackageLoader("finetune_trainer.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"fenced": fenced, "short": charts.number, "cell": cell}
    front = yaml.safe_dump(metadata(report), sort_keys=False, allow_unicode=True).strip()
    return environment.get_template("card.md.j2").render(
        front=front,
        report=report,
        comparison=comparison,
        chosen=[setting for setting in report.settings if setting.origin != "default"],
        serving_commands=serving.serving_commands(report),
        load_snippet=serving.load_snippet(report),
        merge_snippet=serving.merge_snippet(report),
    )


def metadata(report: Report) -> dict[str, Any]:
    """The YAML front matter. The hub refuses names of models and datasets that are not its own, so only those are named."""
    found: dict[str, Any] = {}
    if report.base_on_hub:
        found["base_model"] = report.base_model
    found["library_name"] = "transformers" if report.peft_type == "FULL" else "peft"
    if report.license:
        found["license"] = report.license
    task = "text-classification" if report.objective == "reward" else "text-generation"
    found["pipeline_tag"] = task
    found["tags"] = ["finetune-operator", report.method, report.objective]
    if report.base_on_hub:
        relation = "finetune" if report.peft_type == "FULL" else "adapter"
        found["tags"].append(f"base_model:{relation}:{report.base_model}")
    dataset = report.dataset.removeprefix("hf://")
    if dataset != report.dataset:
        found["datasets"] = [dataset]
    evaluation = report.evaluation
    metrics: list[dict[str, Any]] = [{"type": "loss", "value": evaluation.loss, "name": "Held-out loss"}]
    if evaluation.perplexity is not None:
        value = float(f"{evaluation.perplexity:.4g}")
        metrics.append({"type": "perplexity", "value": value, "name": "Held-out perplexity"})
    if evaluation.accuracy is not None:
        metrics.append({"type": "accuracy", "value": evaluation.accuracy, "name": "Held-out accuracy"})
    found["metrics"] = [metric["type"] for metric in metrics]
    result = {
        "task": {"type": task},
        "dataset": {"name": "held-out rows", "type": dataset if dataset != report.dataset else "custom"},
        "metrics": metrics,
    }
    found["model-index"] = [{"name": report.name, "results": [result]}]
    return found


def fenced(text: str, language: str = "") -> str:
    """A code block that the text cannot end, whatever it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def cell(text: str) -> str:
    """Text within a table's cell: one line, without what Markdown or HTML would take for their own."""
    plain = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", plain)
