"""The way of a finished adapter into the storage: what is uploaded, in which order, and the manifest that makes it whole."""

import json
from pathlib import Path
from typing import Any

from finetune_api import vllm
from finetune_api.finetunejob import ReportStatus
from finetune_api.manifest import REPORT_NAME, AdapterManifest, FileEntry, StoredFiles
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_api.timestamps import current_timestamp
from finetune_artifacts.upload import put_manifest, upload_directory
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import gate, samples, verification
from finetune_trainer.hub import push
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.publish.trained_adapter import TrainedAdapter
from finetune_trainer.report import assemble
from finetune_trainer.report.contents import Sample
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.session.session import Session


def merged_directory(session: Session) -> Path:
    """Where the merged model is, if there is one."""
    return session.scratch / "merged"


def adapter_config(directory: Path) -> dict[str, Any]:
    """The configuration beside a saved adapter; for a whole model only its kind."""
    path = directory / "adapter_config.json"
    if not path.is_file():
        return {"peft_type": "FULL"}
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def servable_by(directory: Path) -> list[str]:
    """The engines that can load the adapter as it is."""
    return [] if vllm.features(adapter_config(directory)) else ["vllm"]


def upload_extra(session: Session, name: str, directory: Path | None) -> StoredFiles | None:
    """Upload what goes beside the adapter. It is whole when the adapter's manifest, which names it, is there."""
    if directory is None or not directory.is_dir():
        return None
    place = session.settings.output.child(name)
    return StoredFiles(uri=str(place), files=upload_directory(session.output, place, directory))


def write_report(
    session: Session,
    made: TrainedAdapter,
    verified: verification.Verification,
    examples: dataset.Examples,
    prompts: list[samples.Prompt],
) -> None:
    """Report, model card and TensorBoard's files, in the adapter's directory and so in its manifest."""
    if refused := vllm.features(config := adapter_config(made.directory)):
        session.run.warnings.append(f"vLLM cannot serve the adapter: {'; '.join(refused)}")
    base, adapter = verified.answers
    report = assemble.assemble_report(
        session.settings,
        session.run,
        examples,
        [Sample(p.text, p.expected, one, other) for p, one, other in zip(prompts, base, adapter, strict=False)],
        verified.evaluation,
        verified.measured,
        session.inputs.model_commit,
        assemble.read_license(session.inputs.model),
        made.directory / "metrics.jsonl",
        str(config["peft_type"]),
        config.get("r"),
        servable_by(made.directory),
    )
    assemble.write_files(made.directory, report)


def build_manifest(
    session: Session, made: TrainedAdapter, verified: verification.Verification, files: list[FileEntry]
) -> AdapterManifest:
    """What there is to know of an adapter whose files are uploaded."""
    settings, config = session.settings, adapter_config(made.directory)
    return AdapterManifest(
        job=settings.origin,
        created_at=current_timestamp(),
        base_model=canonical_name(settings),
        base_revision=session.inputs.model_commit,
        peft_type=str(config["peft_type"]),
        trained_peft_type=made.peft_type,
        rank=config.get("r") or None,
        alpha=config.get("lora_alpha", config.get("alpha")),
        target_modules=made.target_modules,
        trainable_parameters=made.trainable_parameters,
        servable_by=servable_by(made.directory),
        base_weights_sha256=made.base_digest if settings.job.spec.method.full is None else None,
        verification=verified.measured,
        evaluation=verified.evaluation,
        versions=libraries.library_versions(),
        files=files,
    )


def publish_rejected(
    session: Session, made: TrainedAdapter, verified: verification.Verification, refusal: str
) -> Failure:
    """Upload an adapter that did not pass its gate to where nobody takes it for a published one; what there is to say of it. Raises ArtifactError."""
    place = session.settings.rejected
    gate.make_room(session.output, place)
    put_manifest(
        session.output,
        place,
        build_manifest(session, made, verified, upload_directory(session.output, place, made.directory)),
    )
    session.run.page = ReportStatus(uri=str(place.child(REPORT_NAME)))
    text = f"{refusal}: the adapter is not published, but kept with its report in {place}"
    return Failure(Reason.GATE_FAILED, text, gate.FIELD)


def publish(session: Session, made: TrainedAdapter, verified: verification.Verification) -> TrainerResult:
    """Upload the adapter, its manifest last. Raises ArtifactError and Failure.

    The hub comes before the manifest, which names its commit and can never be changed: an attempt that dies in between has not succeeded, and the next one,
    which goes on from the last checkpoint, pushes what has changed since and names that commit. The other way round a job could count as finished without it.
    """
    settings, run = session.settings, session.run
    hub = settings.job.spec.output.hub
    files = upload_directory(session.output, settings.adapter, made.directory)
    manifest = build_manifest(session, made, verified, files).model_copy(
        update={
            "trained": upload_extra(session, "trained", made.kept),
            "merged": upload_extra(session, "merged", merged_directory(session)),
            "hub": push.push(settings, hub, made.directory) if hub else None,
        }
    )
    digest = put_manifest(session.output, settings.adapter, manifest)
    log.info("adapter %s (%s)", settings.adapter, digest)
    return TrainerResult(
        reason="Succeeded",
        message=f"the adapter is in {settings.adapter}",
        resumed_from_step=run.resumed_from_step,
        checkpoint=run.checkpoint,
        evaluation=verified.evaluation,
        adapter=manifest.status(str(settings.adapter), digest),
        progress=run.progress,
        data=run.counts,
        report=ReportStatus(uri=str(settings.adapter.child(REPORT_NAME))),
        warnings=run.warnings,
    )
