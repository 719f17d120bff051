"""Resolve the adapter of an AdapterDeployment, and check that its target can serve it. Pure.

Both happen before any pod is touched.
"""

from collections.abc import Mapping

from finetune_api.adapterdeployment import AdapterDeploymentSpec, AdapterDeploymentStatus, AdapterVersion
from finetune_api.finetunejob import AdapterStatus
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.engine_args import read_engine_args
from finetune_operator.policies.engine_fit import find_misfits
from finetune_operator.reconcile.adapterdeployment.follow import follow
from finetune_operator.reconcile.adapterdeployment.model import Obstacle, ServingTarget, Source
from finetune_operator.reconcile.adapterdeployment.version import (
    build_desired,
    build_entry,
    build_job_source,
    find_adapter,
)
from finetune_operator.reconcile.status_builder import read_status
from finetune_operator.resources.injected import find_container


def find_target(deployment: Object | None, name: str, spec: AdapterDeploymentSpec) -> ServingTarget | Obstacle:
    """Find the container that runs the engine, and what its arguments say about LoRA."""
    if deployment is None:
        return Obstacle(
            Reason.TARGET_NOT_FOUND,
            f"spec.target.deploymentRef: there is no Deployment {name!r} in this namespace: waiting for it",
            stalled=False,
        )
    engine = ENGINES[spec.target.engine]
    container_name = spec.target.container or engine.name
    container = find_container(deployment, container_name)
    if container is None:
        containers = deployment["spec"]["template"]["spec"].get("containers") or []
        names = ", ".join(item["name"] for item in containers)
        return Obstacle(
            Reason.CONTAINER_NOT_FOUND,
            f"spec.target.container: Deployment {name!r} has no container {container_name!r}; it has {names}",
        )
    secret = spec.target.api_key_secret_ref
    return ServingTarget(
        container_name,
        spec.target.port or engine.port,
        secret.name if secret else None,
        engine,
        read_engine_args(container, engine),
    )


def resolve(
    resource: Object, spec: AdapterDeploymentSpec, finetune_jobs: Mapping[str, Object], before: DesiredAdapter | None
) -> Source | Obstacle:
    """Resolve what the pods are to serve for an AdapterDeployment.

    Args:
        resource: The AdapterDeployment.
        spec: Its parsed spec.
        finetune_jobs: The FineTuneJobs of the namespace by name.
        before: Its entry in the ConfigMap. It stays in force when its FineTuneJob is deleted or created anew.
    """
    source = spec.adapter
    if source.uri is not None and source.digest is not None:
        secret = source.secret_ref.name if source.secret_ref else None
        version = DesiredVersion(uri=source.uri, digest=source.digest)
        return Source(build_desired(resource, spec, version, source.s3, secret))
    if source.selector is not None:
        return follow(resource, spec, source.selector, finetune_jobs)
    name = source.finetune_job_ref.name if source.finetune_job_ref else ""
    finetune_job = finetune_jobs.get(name)
    adapter = find_adapter(name, finetune_job.get("status") or {}) if finetune_job is not None else None
    pinned = _find_pinned(resource, name)
    digest = source.digest or (pinned.digest if pinned is not None else None)
    found = adapter.digest if isinstance(adapter, AdapterStatus) else None
    uid = finetune_job["metadata"]["uid"] if finetune_job is not None else None
    anew = pinned is not None and pinned.fine_tune_job is not None and uid not in (None, pinned.fine_tune_job.uid)
    if digest is not None and found != digest:
        held = before if before is not None and before.version.digest == digest else None
        if held is None and pinned is not None and _is_rolled_back(resource, digest):
            held = build_entry(resource, spec, pinned)
        if held is not None:
            note = _describe_other(name, found, digest) if anew or found is not None else ""
            return Source(held, pinned.fine_tune_job if pinned is not None else None, note=note)
        if anew or found is not None:
            return Obstacle(Reason.FINETUNE_JOB_REPLACED, _describe_other(name, found, digest))
    if finetune_job is None or adapter is None:
        text = f"spec.adapter.fineTuneJobRef: there is no FineTuneJob {name!r} in this namespace: waiting for it"
        return Obstacle(Reason.FINETUNE_JOB_NOT_FOUND, text, stalled=False)
    if isinstance(adapter, Obstacle):
        return adapter
    return build_job_source(resource, spec, finetune_job, adapter)


def _find_pinned(resource: Object, finetune_job: str) -> AdapterVersion | None:
    """Find the version to which the FineTuneJob of this name was resolved by an earlier pass.

    A status that an older version of the operator wrote does not name the job: then its generation tells.
    """
    status = resource.get("status") or {}
    found = read_status(AdapterDeploymentStatus, status)
    desired = found.rollback.from_version if found.rollback is not None else found.desired
    if desired is None or desired.fine_tune_job is None:
        return desired if status.get("observedGeneration") == resource["metadata"].get("generation") else None
    return desired if desired.fine_tune_job.name == finetune_job else None


def _is_rolled_back(resource: Object, digest: str) -> bool:
    rollback = read_status(AdapterDeploymentStatus, resource.get("status") or {}).rollback
    return rollback is not None and rollback.from_version.digest == digest


def _describe_other(name: str, found: str | None, digest: str) -> str:
    has = f"has the adapter {found} now" if found is not None else "was created anew and has no adapter yet"
    remedy = (
        f"spec.adapter.digest: {found}" if found is not None else "spec.adapter.digest to its digest, once it has one"
    )
    return (
        f"FineTuneJob {name!r} {has}, but this AdapterDeployment serves {digest}. To serve the other one, set {remedy}"
    )


def check_target(adapter: AdapterStatus | None, target: ServingTarget, deployment: str) -> Obstacle | None:
    """Check that the engine can serve the adapter, as far as its arguments and the FineTuneJob's status tell."""
    container = f"container {target.container!r} of Deployment {deployment!r}"
    misfits = find_misfits(adapter, target.engine_args, target.engine, container)
    if not misfits:
        return None
    return Obstacle(misfits[0].reason, "; ".join(misfit.message for misfit in misfits))
