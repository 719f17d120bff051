"""What lies beside the weights for people and their tools: report, model card and TensorBoard's files, gathered from the whole run."""

import json
from pathlib import Path
from typing import Any

import yaml

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.manifest import REPORT_NAME
from finetune_api.timestamps import current_timestamp
from finetune_api.uris import HfUri, parse_uri
from finetune_trainer.data.dataset import Examples
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.report import card, fields, tensorboard
from finetune_trainer.report.contents import Report, Sample
from finetune_trainer.report.render import render
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.run import ParameterCounts, Run

CARD_NAME, TENSORBOARD_NAME = "README.md", "tensorboard"


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
        created_at=current_timestamp(),
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
