"""Convert a version between the spec, the status and the ConfigMap. Pure."""

from finetune_api.adapterdeployment import AdapterDeploymentSpec, AdapterVersion, JobIdentity
from finetune_api.base import S3Location, SecretRef
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_operator.kube.kinds import Object


def build_desired(
    resource: Object,
    spec: AdapterDeploymentSpec,
    version: DesiredVersion,
    location: S3Location | None,
    secret: str | None,
) -> DesiredAdapter:
    """Build what the pods are to serve for a version at a place, with a Secret for it."""
    return DesiredAdapter(
        deployment=resource["metadata"]["name"],
        served_name=spec.served_name,
        version=version,
        endpoint=location.endpoint if location else None,
        region=location.region if location else None,
        secret=secret,
        tolerance=spec.verification.tolerance,
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
