"""Write commands and code to copy: how to serve, load and merge the adapter."""

import shlex
from typing import Any

import yaml

from finetune_api import API_VERSION
from finetune_api.adapterdeployment import Target
from finetune_api.methods import is_mergeable
from finetune_engines import list_lora_engines
from finetune_engines.base import Engine
from finetune_trainer.report.contents import Report


def local_adapter(report: Report) -> str:
    """Return the adapter's directory on the reader's machine; an adapter in S3 is downloaded there first."""
    return "./adapter" if report.adapter_uri.startswith("s3://") else report.adapter_uri


def local_base(report: Report) -> str:
    """Return the base as engines and transformers accept it: a name on the hub, or a directory."""
    if report.base_on_hub:
        return report.base_model
    return "./base" if report.base_model.startswith("s3://") else "/path/to/base"


def list_preparations(report: Report, *, base: bool = True) -> list[str]:
    """List the lines before a command that download adapter and base, or explain a directory."""
    downloads = ((report.base_model if base else "", "./base"), (report.adapter_uri, "./adapter"))
    lines = [f"finetune fetch {shlex.quote(uri)} {target}" for uri, target in downloads if uri.startswith("s3://")]
    if base and local_base(report) == "/path/to/base":
        lines.insert(0, f"# /path/to/base: the directory that is {report.base_model}")
    return lines


def list_serving_commands(report: Report) -> dict[str, str | None]:
    """Return each engine's serving command by the engine's title; None if it cannot serve the result."""
    return {engine.title: _build_serving_command(engine, report) for engine in list_lora_engines()}


def _build_serving_command(engine: Engine, report: Report) -> str | None:
    if report.peft_type == "FULL" and report.objective != "reward":
        command = engine.model_command(local_adapter(report), report.name)
        return "\n".join([*list_preparations(report, base=False), command])
    if engine.name not in report.servable_by:
        return None
    command = engine.adapter_command(local_base(report), local_adapter(report), report.name, report.rank or 1)
    return "\n".join([*list_preparations(report), command])


def build_deployment(report: Report) -> str | None:
    """Build the AdapterDeployment of the job's adapter; None if no engine can serve it."""
    published = report.evaluation.passed is not False and report.adapter_uri.startswith("s3://")
    if not report.servable_by or not published:
        return None
    engine = report.servable_by[0]
    target: dict[str, Any] = {"deploymentRef": {"name": engine}}
    if engine != Target.model_fields["engine"].default:
        target["engine"] = engine
    item = {
        "apiVersion": API_VERSION,
        "kind": "AdapterDeployment",
        "metadata": {"name": report.name},
        "spec": {
            "adapter": {"fineTuneJobRef": {"name": report.name}},
            "servedName": report.name,
            "target": target,
        },
    }
    return yaml.safe_dump(item, sort_keys=False).strip()


def build_load_snippet(report: Report) -> str | None:
    """Build the Python code that loads the result; None for layers that PEFT does not have."""
    if report.peft_type == "BOTTLENECK":
        return None
    is_full, task = report.peft_type == "FULL", "SequenceClassification" if report.objective == "reward" else "CausalLM"
    revision = f", revision={report.base_revision!r}" if report.base_revision and not is_full else ""
    labels = ", num_labels=1" if report.objective == "reward" and not is_full else ""
    lines = [
        *([] if is_full else ["from peft import PeftModel"]),
        f"from transformers import AutoModelFor{task}, AutoTokenizer",
        "",
        f"base = {(local_adapter(report) if is_full else local_base(report))!r}",
        f'model = AutoModelFor{task}.from_pretrained(base{revision}{labels}, dtype="auto")',
        f"tokenizer = AutoTokenizer.from_pretrained(base{revision})",
        *([] if is_full else [f"model = PeftModel.from_pretrained(model, {local_adapter(report)!r})"]),
    ]
    return "\n".join(lines)


def build_merge_snippet(report: Report) -> str | None:
    """Build the Python code that merges the adapter into the base; None if it cannot be merged."""
    if not is_mergeable(report.peft_type):
        return None
    return 'model = model.merge_and_unload()\nmodel.save_pretrained("merged")\ntokenizer.save_pretrained("merged")'
