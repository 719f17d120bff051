"""Recognise an adapter that an earlier attempt has finished. Knows no torch."""

from pydantic import ValidationError

from finetune_api.finetunejob import ReportStatus
from finetune_api.manifest import MANIFEST_NAME, REPORT_NAME, AdapterManifest
from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_artifacts.digests import digest_of
from finetune_artifacts.objects import read_object
from finetune_artifacts.storage import Storage
from finetune_trainer.evaluation import gate
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import Settings


def finished_adapter(settings: Settings, output: Storage) -> TrainerResult | None:
    """Return the result of an earlier attempt that was cut off after its manifest was written, if any.

    Raises:
        Failure: OutputExists, if the adapter there is another job's, or lacks what the job asks for now.
        ArtifactError: The storage fails or refuses.
    """
    manifest_uri = settings.adapter.child(MANIFEST_NAME)
    if output.head(manifest_uri) is None:
        return None
    content = read_object(output, manifest_uri)
    try:
        manifest = AdapterManifest.model_validate_json(content)
    except ValidationError:
        manifest = None
    if manifest is None or manifest.job != settings.origin:
        owner = f"FineTuneJob {manifest.job.namespace}/{manifest.job.name}" if manifest else "something else"
        raise Failure(
            Reason.OUTPUT_EXISTS,
            f"{manifest_uri} is there already, of {owner}: choose another location, or delete what is there",
            settings.output_field,
        )
    refuse_incomplete(settings, manifest)
    log.info("the adapter is finished already: %s", settings.adapter)
    return TrainerResult(
        reason="Succeeded",
        message="the adapter was finished by an earlier attempt",
        evaluation=manifest.evaluation,
        adapter=manifest.status(str(settings.adapter), digest_of(content)),
        report=next(
            (ReportStatus(uri=str(settings.adapter.child(f.path))) for f in manifest.files if f.path == REPORT_NAME),
            None,
        ),
    )


def refuse_incomplete(settings: Settings, manifest: AdapterManifest) -> None:
    """Refuse a finished adapter that lacks what the job asks for.

    On a workstation the file may have been changed since, in fields that do not decide the weights.

    Raises:
        Failure: GateFailed or OutputExists.
    """
    output, adapter_uri = settings.job.spec.output, settings.adapter
    refusal = manifest.evaluation and gate.apply_gate(settings.job.spec.evaluation.gate, manifest.evaluation)[1]
    if refusal:
        message = f"{refusal}: {adapter_uri} was published before there was this gate"
        raise Failure(Reason.GATE_FAILED, message, gate.FIELD)
    evaluation = settings.job.spec.evaluation
    for field, is_asked, is_there in (
        (
            "spec.evaluation.compareWithFull",
            evaluation.compare_with_full,
            manifest.evaluation and manifest.evaluation.comparison,
        ),
        ("spec.output.mergedModel", output.merged_model, manifest.merged),
        ("spec.output.hub", output.hub, manifest.hub),
    ):
        if is_asked and not is_there:
            raise Failure(
                Reason.OUTPUT_EXISTS,
                f"{adapter_uri} was finished without it: take it away, or choose another {settings.output_field}",
                field,
            )
