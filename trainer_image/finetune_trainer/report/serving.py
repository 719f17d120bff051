"""How the adapter is served, loaded and merged: commands and files to copy."""

import shlex

import yaml

from finetune_api import API_VERSION
from finetune_trainer.report.contents import Report

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank accepts."""


def local(report: Report) -> str:
    """The adapter's directory on the reader's machine; S3 addresses are fetched to one first."""
    return "./adapter" if report.adapter_uri.startswith("s3://") else report.adapter_uri


def local_base(report: Report) -> str:
    """The base as vLLM and transformers take it: its name on the hub, or a directory."""
    if report.base_on_hub:
        return report.base_model
    return "./base" if report.base_model.startswith("s3://") else "/path/to/base"


def preparation(report: Report) -> list[str]:
    """The lines before a command that bring base and adapter to the reader's machine, or say what is meant."""
    wanted = ((report.base_model, "./base"), (report.adapter_uri, "./adapter"))
    lines = [f"finetune fetch {shlex.quote(uri)} {target}" for uri, target in wanted if uri.startswith("s3://")]
    if local_base(report) == "/path/to/base":
        lines.insert(0, f"# /path/to/base: the directory that is {report.base_model}")
    return lines


def vllm_command(report: Report) -> str | None:
    """Starts vLLM with the adapter; None where vLLM cannot serve it as it is."""
    if "vllm" not in report.servable_by:
        return None
    rank = next((rank for rank in RANKS if rank >= (report.rank or 1)), RANKS[-1])
    served = shlex.quote(f"{report.name}={local(report)}")
    command = f"vllm serve {shlex.quote(local_base(report))} --enable-lora \\\n  --max-lora-rank {rank} --lora-modules {served}"
    return "\n".join([*preparation(report), command])


def deployment(report: Report) -> str | None:
    """The AdapterDeployment of the job's adapter; None where no engine can serve it."""
    if not report.servable_by or not report.adapter_uri.startswith("s3://"):
        return None
    item = {
        "apiVersion": API_VERSION,
        "kind": "AdapterDeployment",
        "metadata": {"name": report.name},
        "spec": {
            "adapter": {"fineTuneJobRef": {"name": report.name}},
            "servedName": report.name,
            "target": {"deploymentRef": {"name": "vllm"}},
        },
    }
    return yaml.safe_dump(item, sort_keys=False).strip()


def load_snippet(report: Report) -> str:
    """Loads base and adapter with PEFT."""
    revision = f", revision={report.base_revision!r}" if report.base_revision else ""
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = {local_base(report)!r}",
        f'model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype="auto")',
        f"tokenizer = AutoTokenizer.from_pretrained(base{revision})",
        f"model = PeftModel.from_pretrained(model, {local(report)!r})",
    ]
    return "\n".join(lines)


def merge_snippet(report: Report) -> str:
    """Merges the adapter into the loaded base, and saves a model that needs no PEFT."""
    return 'model = model.merge_and_unload()\nmodel.save_pretrained("merged")\ntokenizer.save_pretrained("merged")'
