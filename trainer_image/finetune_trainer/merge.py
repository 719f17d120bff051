"""Merge the finished adapter into its base and store the merged model, with its manifest last.

A pod without a GPU does this after the training. A second merge returns the merged model that the first one stored.
"""

import os
import shutil
from functools import partial
from pathlib import Path

from finetune_api.finetunejob import MergedModelStatus
from finetune_api.manifest import MANIFEST_NAME, AdapterManifest, MergedManifest
from finetune_api.messages import MergeResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_api.timestamps import current_timestamp
from finetune_artifacts.digests import digest_of
from finetune_artifacts.download import download_adapter
from finetune_artifacts.fence import FencedStorage, claim_storage
from finetune_artifacts.objects import read_object
from finetune_artifacts.s3 import S3Storage
from finetune_artifacts.storage import Storage
from finetune_artifacts.upload import put_manifest, upload_directory
from finetune_trainer.publish.finished import find_finished_adapter
from finetune_trainer.runtime import result
from finetune_trainer.runtime.failures import Failure, classify
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.libraries import library_versions
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.fetch import fetch_model

PATIENCE_SECONDS = 300.0
"""How long an unavailable storage is retried before the merge fails."""
SUCCEEDED = "Succeeded"


def main(settings: Settings) -> int:
    """Merge the job's adapter, write the result to the termination log, and return the exit code."""

    def exit_preempted() -> None:
        result.write(MergeResult(reason=Reason.PREEMPTED, message="asked to stop"), settings.termination_log)
        os._exit(EXIT_CODES[Reason.PREEMPTED])

    Interruption(0, exit_preempted).install()
    outcome = merge_adapter(settings)
    result.write(outcome, settings.termination_log)
    return 0 if outcome.reason == SUCCEEDED else EXIT_CODES.get(outcome.reason, 1)


def merge_adapter(settings: Settings) -> MergeResult:
    """Merge the job's adapter, and return the merged model or why there is none; raises nothing."""
    try:
        model = find_or_merge(settings)
    except Exception as error:  # noqa: BLE001 -- every end of a merge has a reason
        reason, message = classify(error)
        if reason is Reason.TRAINER_ERROR:
            log.exception("the merge failed")
            reason = Reason.MERGE_FAILED
        log.error("%s: %s", reason, message)
        return MergeResult(reason=reason, message=message)
    log.info("merged model %s (%s)", model.uri, model.digest)
    return MergeResult(reason=SUCCEEDED, message=f"the merged model is in {model.uri}", merged_model=model)


def find_or_merge(settings: Settings) -> MergedModelStatus:
    """Return the merged model of the finished adapter; make it if there is none.

    Raises:
        Failure: The adapter is not finished, the base cannot be used, or the merged model is not base and adapter.
        ArtifactError: The storage fails or refuses.
    """
    output = settings.output_storage(PATIENCE_SECONDS)
    finished = find_finished_adapter(settings, output)
    if finished is None or finished.adapter is None:
        raise Failure(Reason.MERGE_FAILED, f"there is no finished adapter in {settings.adapter}")
    digest = finished.adapter.digest
    if stored := find_merged(settings, output, digest):
        return stored
    work = settings.scratch / "merge"
    shutil.rmtree(work, ignore_errors=True)
    adapter = download_adapter(output, settings.adapter, digest, work / "adapter")
    if adapter.merged is not None:  # by a trainer of an older version
        size = sum(file.size_bytes for file in adapter.merged.files)
        return MergedModelStatus(uri=adapter.merged.uri, digest=digest, size_bytes=size)
    if not settings.workstation and isinstance(output, S3Storage):
        output = claim_storage(output, settings.merge_claim, settings.attempt)
    with phase("waiting for the model"):
        base, _ = fetch_model(settings, PATIENCE_SECONDS)
    manifest = merge_files(settings, base, work, adapter, digest)
    with phase("uploading the merged model"):
        files = upload_directory(output, settings.merged, work / "merged")
        manifest = manifest.model_copy(update={"files": files})
        merged_digest = put_manifest(output, settings.merged, manifest)
    if isinstance(output, FencedStorage):
        output.release_claim()
    return manifest.status(str(settings.merged), merged_digest)


def find_merged(settings: Settings, output: Storage, adapter_digest: str) -> MergedModelStatus | None:
    """Return the merged model that an earlier merge has finished, if any.

    Raises:
        Failure: OUTPUT_EXISTS, if it is of another adapter.
        ArtifactError: The storage fails or refuses.
    """
    uri = settings.merged.child(MANIFEST_NAME)
    if output.head(uri) is None:
        return None
    content = read_object(output, uri)
    manifest = MergedManifest.model_validate_json(content)
    if (manifest.job, manifest.adapter_digest) != (settings.origin, adapter_digest):
        owner = f"{manifest.job.namespace}/{manifest.job.name}"
        text = f"{uri} is there already, of another adapter of FineTuneJob {owner}: delete what is there"
        raise Failure(Reason.OUTPUT_EXISTS, text, settings.output_field)
    return manifest.status(str(settings.merged), digest_of(content))


def merge_files(
    settings: Settings, base: Path, work: Path, adapter: AdapterManifest, adapter_digest: str
) -> MergedManifest:
    """Merge into ``<work>/merged`` in the precision of the training, and return the manifest without its files."""
    with phase("importing torch, transformers and peft"):
        from finetune_trainer.models import device, loading
        from finetune_trainer.publish import merging
    spec = settings.job.spec
    precision = adapter.precision or device.choose_precision(spec.training)
    load = partial(loading.load_base, dtype=device.DTYPES[precision], trust_remote_code=spec.model.trust_remote_code)
    with phase("merging the adapter into the base"):
        differences = device.run_where_it_fits(
            lambda placement: merging.merge(
                base,
                work / "adapter",
                work / "merged",
                load_base=partial(load, placement=placement),
                tokens=spec.training.max_length,
            ),
            ["gpu", "cpu"] if settings.workstation else ["cpu"],
        )
    return MergedManifest(
        job=settings.origin,
        created_at=current_timestamp(),
        adapter_digest=adapter_digest,
        base_model=adapter.base_model,
        base_revision=adapter.base_revision,
        precision=precision,
        verification=differences,
        versions=library_versions(),
        files=[],
    )
