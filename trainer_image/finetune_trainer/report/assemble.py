"""Assemble a run's report, and write it with the model card and TensorBoard's events."""

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
from finetune_trainer.report.render import render_report
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.run import ParameterCounts, Run

CARD_NAME, TENSORBOARD_NAME = "README.md", "tensorboard"


def write_files(directory: Path, report: Report) -> None:
    """Write report, model card and TensorBoard's events into the adapter's directory."""
    (directory / REPORT_NAME).write_text(render_report(report), encoding="utf-8")
    (directory / CARD_NAME).write_text(card.render_card(report), encoding="utf-8")
    tensorboard.write_events(report.history, directory / TENSORBOARD_NAME)


def assemble_report(
    settings: Settings,
    run: Run,
    *,
    examples: Examples,
    samples: list[Sample],
    evaluation: EvaluationStatus,
    verification: dict[str, float],
    revision: str | None,
    license_name: str | None,
    metrics: Path,
    peft_type: str,
    rank: int | None,
    servable_by: list[str],
) -> Report:
    """Gather what the report of a finished run shows.

    Args:
        settings: The attempt's settings.
        run: The state of the attempt.
        examples: The prepared dataset.
        samples: Sample prompts with the answers of base and adapter.
        evaluation: The held-out metrics.
        verification: Differences that the verification measured, by name.
        revision: Commit of a base from the hub.
        license_name: The base's licence.
        metrics: ``metrics.jsonl``, with the logged entries of all attempts.
        peft_type: PEFT's name of the published type.
        rank: LoRA rank, if there is one.
        servable_by: Engines that can load the adapter.
    """
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
        verification=verification,
        quantised=spec.method.quantization is not None,
        warnings=list(dict.fromkeys(run.warnings)),
        usage=fields.describe_usage(settings),
        learned=examples.shown,
    )


def read_license(model: Path) -> str | None:
    """Read the licence from the base's own model card; None if it names none."""
    path = model / CARD_NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    _, _, rest = text.partition("---\n")
    front, separator, _ = rest.partition("\n---")
    try:
        metadata: Any = yaml.safe_load(front) if separator and text.startswith("---\n") else None
    except yaml.YAMLError:
        return None
    name = metadata.get("license") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else None
