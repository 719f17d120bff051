"""Check the output: the bucket, write access, and that no other job's adapter is there."""

from pydantic import ValidationError

from finetune_api.manifest import MANIFEST_NAME, AdapterManifest
from finetune_api.reasons import Reason
from finetune_artifacts.objects import read_object
from finetune_trainer.checkpoints import run_fingerprint
from finetune_trainer.hub import push
from finetune_trainer.preflight.credentials import require_keys
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.runtime.settings import Settings


def check_output(settings: Settings, result: CheckResult, patience_seconds: float) -> None:
    """Check that the output can be written and holds no other job's adapter."""
    require_keys(settings, settings.job.spec.output.secret_ref, "spec.output.secretRef", Reason.OUTPUT_ACCESS_DENIED)
    store = settings.output_storage(patience_seconds)
    store.check_root(settings.output)
    if not store.probe_write(settings.checkpoints):
        result.warnings.append(
            f"the S3 service at {store.endpoint} does not honour If-None-Match: two jobs with the same prefix could "
            "overwrite each other's adapter"
        )
    if settings.job.spec.output.hub:
        push.check_write_access(settings, settings.job.spec.output.hub)
    if other_jobs := run_fingerprint.list_other_jobs(store, settings.checkpoints, settings.origin):
        result.warnings.append(
            f"{settings.output} has checkpoints of FineTuneJob {', '.join(other_jobs)} too: "
            "they are not touched, but only the first job to finish can publish its adapter there"
        )
    manifest_uri = settings.adapter.child(MANIFEST_NAME)
    if store.head(manifest_uri) is None:
        return
    try:
        manifest = AdapterManifest.model_validate_json(read_object(store, manifest_uri))
    except ValidationError:
        owner = "something else"
    else:
        if manifest.job == settings.origin:
            return
        owner = f"FineTuneJob {manifest.job.namespace}/{manifest.job.name} (uid {manifest.job.uid})"
    result.add(
        Reason.OUTPUT_EXISTS,
        settings.output_field,
        f"{settings.adapter} has an adapter already, of {owner}: choose another location, or delete the adapter",
    )
