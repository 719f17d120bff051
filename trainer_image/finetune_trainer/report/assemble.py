"""What lies beside the weights for people and their tools: report, model card and TensorBoard's files, gathered from the whole run."""

import json
from pathlib import Path
from typing import Any

import yaml
from peft import PeftModel

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.manifest import REPORT_NAME
from finetune_api.uris import HfUri, parse_uri
from finetune_trainer.data.dataset import Examples
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.report import card, fields, tensorboard
from finetune_trainer.report.contents import Report, Sample
from finetune_trainer.report.render import render
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.settings import Settings, now
from finetune_trainer.session.run import ParameterCounts, Run

CARD_NAME, TENSORBOARD_NAME = "README.md", "tensorboard"


CARRIERS = ("lora_", "ia3_", "hada_", "lokr_", "oft_", "vera_", "miss_", "boft_")
"""How the names of the parts begin that PEFT puts into a module."""
NO_MODULES = ("default", "weight", "bias", "modules_to_save", "original_module", "base_layer")


def write_files(directory: Path, report: Report) -> None:
    """Put everything into the adapter's directory."""
    (directory / REPORT_NAME).write_text(render(report), encoding="utf-8")
    (directory / CARD_NAME).write_text(card.render(report), encoding="utf-8")
    tensorboard.write(report.history, directory / TENSORBOARD_NAME)


def assemble_report(
    settings: Settings,
    run: Run,
    examples: Examples,
    samples: list[Sample],
    evaluation: EvaluationStatus,
    measured: dict[str, float],
    revision: str | None,
    license_name: str | None,
    metrics: Path,
    peft_type: str,
    rank: int | None,
    servable_by: list[str],
) -> Report:
    """All that there is to say of a run that is done."""
    job, spec = settings.job, settings.job.spec
    return Report(
        name=job.metadata.name,
        namespace=job.metadata.namespace,
        created_at=now(),
        base_model=canonical_name(settings),
        base_revision=revision,
        base_on_hub=isinstance(parse_uri(spec.model.uri), HfUri),
        license=license_name,
        dataset=spec.dataset.uri,
        method=spec.method.name,
        objective=spec.objective,
        peft_type=peft_type,
        rank=rank,
        adapter_uri=str(settings.rejected if evaluation.passed is False else settings.adapter),
        servable_by=servable_by,
        evaluation=evaluation,
        samples=samples,
        history=[json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()],
        data=fields.describe_shape(examples.counts),
        settings=fields.list_settings(settings, run),
        parameters=run.parameters or ParameterCounts(0, 0, []),
        attempts=fields.list_attempts(run),
        versions=libraries.library_versions(),
        measured=measured,
        quantised=spec.method.quantization is not None,
        warnings=list(dict.fromkeys(run.warnings)),
    )


def read_license(model: Path) -> str | None:
    """The licence that the base's own model card names, where it came with one."""
    path = model / CARD_NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    _, _, rest = text.partition("---\n")
    front, separator, _ = rest.partition("\n---")
    try:
        found: Any = yaml.safe_load(front) if separator and text.startswith("---\n") else None
    except yaml.YAMLError:
        return None
    named = found.get("license") if isinstance(found, dict) else None
    return named if isinstance(named, str) else None


def count_parameters(model: Any) -> ParameterCounts:
    """What is trained, by the last part of the name of the module that carries it, the largest first."""
    modules: dict[str, int] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            modules[module_of(name)] = modules.get(module_of(name), 0) + weight.numel()
    # both count what 4-bit weights stand for, not the bytes that they are packed into
    total = model.get_nb_trainable_parameters()[1] if isinstance(model, PeftModel) else model.num_parameters()
    return ParameterCounts(sum(modules.values()), total, sorted(modules.items(), key=lambda item: (-item[1], item[0])))


def module_of(name: str) -> str:
    """``q_proj`` of ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight``."""
    parts = [part for part in name.split(".") if part not in NO_MODULES and not part.isdigit()]
    if "prompt_encoder" in parts:
        return "prompt_encoder"
    carriers = [index for index, part in enumerate(parts) if part.startswith(CARRIERS)]
    at = carriers[0] if carriers else len(parts)
    return parts[at - 1] if at else name
