"""Recognise an adapter that an earlier attempt has finished, without torch."""

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


def find_finished_adapter(settings: Settings, output: Storage) -> TrainerResult | None:
    """Return the result of an earlier attempt that ended after its manifest was written; None if there is none.

    Raises:
        Failure: OUTPUT_EXISTS: the adapter is another job's, or lacks something that the job asks for now.
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
            f"{manifest_uri} exists already and belongs to {owner}: choose another location, or delete it",
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
    """Refuse a finished adapter that lacks something that the job asks for.

    On a workstation, fields of the file that do not decide the weights may have been changed since.

    Raises:
        Failure: GATE_FAILED or OUTPUT_EXISTS.
    """
    output, adapter_uri = settings.job.spec.output, settings.adapter
    refusal = manifest.evaluation and gate.apply_gate(settings.job.spec.evaluation.gate, manifest.evaluation)[1]
    if refusal:
        message = f"{refusal}: {adapter_uri} was published before there was this gate"
        raise Failure(Reason.GATE_FAILED, message, gate.FIELD)
    evaluation = settings.job.spec.evaluation
    for field, is_requested, exists in (
        (
            "spec.evaluation.compareWithFull",
            evaluation.compare_with_full,
            manifest.evaluation and manifest.evaluation.comparison,
        ),
        ("spec.output.hub", output.hub, manifest.hub),
    ):
        if is_requested and not exists:
            raise Failure(
                Reason.OUTPUT_EXISTS,
                f"{adapter_uri} was finished without it: delete that adapter, or choose another "
                f"{settings.output_field}",
                field,
            )
