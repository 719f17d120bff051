"""Upload a finished adapter: its files first, then the manifest that marks it as complete."""

import json
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import ReportStatus
from finetune_api.manifest import REPORT_NAME, AdapterManifest, FileEntry, StoredFiles
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_api.timestamps import current_timestamp
from finetune_artifacts.upload import put_manifest, upload_directory
from finetune_engines import engines_that_serve, list_refusals
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import gate, samples, verification
from finetune_trainer.hub import push
from finetune_trainer.models import device
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.publish.trained_adapter import TrainedAdapter
from finetune_trainer.report import assemble
from finetune_trainer.report.contents import Sample
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.session.session import Session


def adapter_config(directory: Path) -> dict[str, Any]:
    """Read the saved adapter's configuration; for a whole model, only its type, FULL."""
    path = directory / "adapter_config.json"
    if not path.is_file():
        return {"peft_type": "FULL"}
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def upload_trained(session: Session, directory: Path | None) -> StoredFiles | None:
    """Upload the adapter as it was trained, without a manifest: that of the published adapter lists its files."""
    if directory is None:
        return None
    uri = session.settings.output.child("trained")
    return StoredFiles(uri=str(uri), files=upload_directory(session.output, uri, directory))


def write_report(
    session: Session,
    adapter: TrainedAdapter,
    verification_result: verification.Verification,
    examples: dataset.Examples,
    prompts: list[samples.Prompt],
) -> None:
    """Write report, model card and TensorBoard's events into the adapter's directory."""
    config = adapter_config(adapter.directory)
    refusals = list_refusals(config)
    session.run.warnings += [f"{title} cannot serve the adapter: {problems}" for title, problems in refusals.items()]
    report = assemble.assemble_report(
        session.settings,
        session.run,
        examples=examples,
        samples=[
            Sample(prompt.text, prompt.expected, base, tuned)
            for prompt, base, tuned in zip(prompts, *verification_result.sample_answers, strict=False)
        ],
        evaluation=verification_result.evaluation,
        verification=verification_result.differences,
        revision=session.inputs.model_commit,
        license_name=assemble.read_license(session.inputs.model),
        metrics=adapter.directory / "metrics.jsonl",
        peft_type=str(config["peft_type"]),
        rank=config.get("r"),
        servable_by=engines_that_serve(config),
    )
    assemble.write_files(adapter.directory, report)


def build_manifest(
    session: Session, adapter: TrainedAdapter, verification_result: verification.Verification, files: list[FileEntry]
) -> AdapterManifest:
    """Build the manifest of an adapter whose files are uploaded."""
    settings, config = session.settings, adapter_config(adapter.directory)
    return AdapterManifest(
        job=settings.origin,
        created_at=current_timestamp(),
        base_model=canonical_name(settings),
        base_revision=session.inputs.model_commit,
        peft_type=str(config["peft_type"]),
        trained_peft_type=adapter.peft_type,
        rank=config.get("r") or None,
        alpha=config.get("lora_alpha", config.get("alpha")),
        target_modules=adapter.target_modules,
        trainable_parameters=adapter.trainable_parameters,
        servable_by=engines_that_serve(config),
        base_weights_sha256=adapter.base_digest if settings.job.spec.method.full is None else None,
        folded=adapter.folded,
        verification=verification_result.differences
        | ({"foldingError": adapter.folding_error} if adapter.folded else {}),
        evaluation=verification_result.evaluation,
        precision=device.choose_precision(settings.job.spec.training),
        versions=libraries.library_versions(),
        files=files,
    )


def publish_rejected(
    session: Session, adapter: TrainedAdapter, verification_result: verification.Verification, refusal: str
) -> Failure:
    """Upload an adapter that did not pass its gate to a location of its own, and return the failure.

    Args:
        session: The attempt.
        adapter: The trained adapter.
        verification_result: Its verification.
        refusal: Why the gate refused it.

    Raises:
        ArtifactError: The upload failed.
    """
    uri = session.settings.rejected
    gate.delete_rejected(session.output, uri)
    put_manifest(
        session.output,
        uri,
        build_manifest(session, adapter, verification_result, upload_directory(session.output, uri, adapter.directory)),
    )
    session.run.report = ReportStatus(uri=str(uri.child(REPORT_NAME)))
    text = f"{refusal}: the adapter is not published; it is kept with its report in {uri}"
    return Failure(Reason.GATE_FAILED, text, gate.FIELD)


def publish(session: Session, adapter: TrainedAdapter, verification_result: verification.Verification) -> TrainerResult:
    """Upload the adapter, push it to the hub if the job asks for it, and write the manifest last.

    The manifest contains the hub's commit and cannot be changed, so the push comes first. If an attempt dies in
    between, the next one resumes from the last checkpoint, pushes again and writes the new commit. In the other order,
    a job could count as finished without its push.

    Raises:
        ArtifactError: An upload failed.
        Failure: The hub refused the push.
    """
    settings, run = session.settings, session.run
    hub = settings.job.spec.output.hub
    files = upload_directory(session.output, settings.adapter, adapter.directory)
    manifest = build_manifest(session, adapter, verification_result, files).model_copy(
        update={
            "trained": upload_trained(session, adapter.original_directory),
            "hub": push.push(settings, hub, adapter.directory) if hub else None,
        }
    )
    digest = put_manifest(session.output, settings.adapter, manifest)
    log.info("adapter %s (%s)", settings.adapter, digest)
    return TrainerResult(
        reason="Succeeded",
        message=f"the adapter is in {settings.adapter}",
        resumed_from_step=run.resumed_from_step,
        checkpoint=run.checkpoint,
        evaluation=verification_result.evaluation,
        adapter=manifest.status(str(settings.adapter), digest),
        progress=run.progress,
        data=run.counts,
        report=ReportStatus(uri=str(settings.adapter.child(REPORT_NAME))),
        warnings=run.warnings,
        training_choice=run.choice,
        adjustments=list(run.adjustments) or None,
    )
