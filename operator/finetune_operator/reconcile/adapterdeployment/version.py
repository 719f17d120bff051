"""Convert a version between a FineTuneJob, the status and the ConfigMap. Pure.

A version is an adapter or, for an engine without LoRA, the merged model of base and adapter.
"""

from finetune_api.adapterdeployment import AdapterDeploymentSpec, AdapterVersion, JobIdentity
from finetune_api.base import S3Location, SecretRef
from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import AdapterStatus, FineTuneJobStatus, MergedModelStatus, Output
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_operator.conditions import find
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Obstacle, Source
from finetune_operator.reconcile.status_builder import read_status

Artifact = AdapterStatus | MergedModelStatus
"""What a FineTuneJob has for an engine."""


def build_desired(
    resource: Object,
    spec: AdapterDeploymentSpec,
    version: DesiredVersion,
    location: S3Location | None,
    secret: str | None,
) -> DesiredAdapter:
    """Build what the pods are to serve for a version.

    ``location`` has endpoint and region of its S3, ``secret`` is the name of the Secret with the credentials for it.
    """
    return DesiredAdapter(
        deployment=resource["metadata"]["name"],
        served_name=spec.served_name,
        version=version,
        endpoint=location.endpoint if location else None,
        region=location.region if location else None,
        secret=secret,
        tolerance=spec.verification.tolerance,
        prove_every_seconds=60 * spec.verification.every_minutes,
    )


def build_entry(resource: Object, spec: AdapterDeploymentSpec, version: AdapterVersion) -> DesiredAdapter:
    """Build what the pods are to serve for a version of the status."""
    secret = version.secret_ref.name if version.secret_ref else None
    return build_desired(resource, spec, DesiredVersion(uri=version.uri, digest=version.digest), version.s3, secret)


def build_version(desired: DesiredAdapter, finetune_job: JobIdentity | None) -> AdapterVersion:
    """Build the version for the status, with all that is needed to serve it when its FineTuneJob is gone."""
    location = S3Location(endpoint=desired.endpoint, region=desired.region)
    return AdapterVersion(
        uri=desired.version.uri,
        digest=desired.version.digest,
        fine_tune_job=finetune_job,
        s3=location if location != S3Location() else None,
        secret_ref=SecretRef(name=desired.secret) if desired.secret else None,
    )


def build_job_source(resource: Object, spec: AdapterDeploymentSpec, finetune_job: Object, artifact: Artifact) -> Source:
    """Build the source of an adapter or merged model that a FineTuneJob has."""
    output = Output.model_validate(finetune_job["spec"]["output"], extra="ignore")
    reference = spec.adapter.secret_ref or output.secret_ref
    version = DesiredVersion(uri=artifact.uri, digest=artifact.digest)
    entry = build_desired(resource, spec, version, output.s3, reference.name if reference else None)
    meta = finetune_job["metadata"]
    adapter = artifact if isinstance(artifact, AdapterStatus) else None
    return Source(entry, JobIdentity(name=meta["name"], uid=meta["uid"]), adapter)


def find_artifact(spec: AdapterDeploymentSpec, name: str, status: Object) -> Artifact | Obstacle:
    """Find in the status of a FineTuneJob what the engine of the spec serves, or why there is none."""
    adapter = _find_adapter(name, status)
    if isinstance(adapter, Obstacle) or not ENGINES[spec.target.engine].serves_merged:
        return adapter
    return _find_merged_model(name, status)


def _find_merged_model(name: str, status: Object) -> MergedModelStatus | Obstacle:
    model = read_status(FineTuneJobStatus, status).merged_model
    merged = find(status.get("conditions") or [], ConditionType.MERGED)
    if model is not None:
        return model
    if merged is None:
        text = (
            f"spec.target.engine merged serves a merged model, and FineTuneJob {name!r} makes none: train with "
            "spec.output.mergedModel: true"
        )
        return Obstacle(Reason.ADAPTER_UNSUPPORTED, text)
    if merged["status"] == "False":
        text = f"FineTuneJob {name!r} has no merged model: {merged['reason']}: {merged['message']}"
        return Obstacle(Reason.MERGE_FAILED, text)
    text = f"waiting for the merged model of FineTuneJob {name!r}: {merged['message']}"
    return Obstacle(Reason.ADAPTER_NOT_READY, text, stalled=False)


def _find_adapter(name: str, status: Object) -> AdapterStatus | Obstacle:
    """Find the adapter in the status of a FineTuneJob, or why it has none."""
    conditions = status.get("conditions") or []
    ready, stalled = find(conditions, ConditionType.READY), find(conditions, ConditionType.STALLED)
    if stalled is not None and stalled["status"] == "True":
        text = f"FineTuneJob {name!r} failed and so has no adapter: {stalled['reason']}: {stalled['message']}"
        return Obstacle(Reason.FINETUNE_JOB_FAILED, text)
    adapter = read_status(FineTuneJobStatus, status).adapter
    if ready is None or ready["status"] != "True" or adapter is None:
        text = f"waiting for the adapter of FineTuneJob {name!r} ({describe_phase(status)})"
        return Obstacle(Reason.ADAPTER_NOT_READY, text, stalled=False)
    return adapter


def describe_phase(status: Object) -> str:
    """Describe in a few words how far a FineTuneJob is: ``Training, 40 %``."""
    percent = (status.get("progress") or {}).get("percent")
    return f"{status.get('phase', 'Pending')}{'' if percent is None else f', {percent} %'}"
