"""Resolve the adapter of an AdapterDeployment, and check that its target can serve it. Pure.

Both happen before any pod is touched.
"""

from collections.abc import Collection, Mapping

from finetune_api.adapterdeployment import AdapterDeploymentSpec, AdapterDeploymentStatus, AdapterVersion
from finetune_api.finetunejob import AdapterStatus
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_engines.arguments import read_engine_args
from finetune_engines.fit import find_misfits
from finetune_operator.kube.kinds import Object
from finetune_operator.kube.workloads import WorkloadRef
from finetune_operator.reconcile.adapterdeployment.follow import follow
from finetune_operator.reconcile.adapterdeployment.model import Obstacle, ServingTarget, Source
from finetune_operator.reconcile.adapterdeployment.version import (
    build_desired,
    build_entry,
    build_job_source,
    find_artifact,
)
from finetune_operator.reconcile.status_builder import read_status
from finetune_operator.resources.injected import find_container
from finetune_operator.resources.injection import config_map_name
from finetune_operator.resources.workloads import rules_of
from finetune_operator.resources.workloads.pods import GUIDE


def find_target(workload: Object | None, ref: WorkloadRef, spec: AdapterDeploymentSpec) -> ServingTarget | Obstacle:
    """Find the container that runs the engine, and what its arguments say about LoRA."""
    if workload is None and not rules_of(ref.kind).GETS_AGENT:
        text = (
            f"{ref.field}: there are no pods with {ref.name} in this namespace: waiting for them. They need the agent "
            f"({GUIDE}); their ConfigMap is {config_map_name(ref.group)}"
        )
        return Obstacle(Reason.TARGET_NOT_FOUND, text, stalled=False)
    if workload is None:
        return Obstacle(
            Reason.TARGET_NOT_FOUND,
            f"{ref.field}: there is no {ref} in this namespace: waiting for it",
            stalled=False,
        )
    engine = ENGINES[spec.target.engine]
    container_name = spec.target.container or engine.name
    container = find_container(workload, container_name)
    if container is None:
        containers = workload["spec"]["template"]["spec"].get("containers") or []
        names = ", ".join(item["name"] for item in containers)
        return Obstacle(
            Reason.CONTAINER_NOT_FOUND,
            f"spec.target.container: {ref} has no container {container_name!r}; it has {names}",
        )
    secret = spec.target.api_key_secret_ref
    return ServingTarget(
        container_name,
        spec.target.port or engine.port,
        secret.name if secret else None,
        engine,
        read_engine_args(container, engine),
        rolling=spec.strategy.type == "Rolling",
    )


def resolve(
    resource: Object, spec: AdapterDeploymentSpec, finetune_jobs: Mapping[str, Object], before: DesiredAdapter | None
) -> Source | Obstacle:
    """Resolve what the pods are to serve for an AdapterDeployment.

    Args:
        resource: The AdapterDeployment.
        spec: Its parsed spec.
        finetune_jobs: The gathered FineTuneJobs by name.
        before: Its entry in the ConfigMap. It stays in force when its FineTuneJob is deleted or created again.
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
    artifact = find_artifact(spec, name, finetune_job.get("status") or {}) if finetune_job is not None else None
    pinned = _find_pinned(resource, name)
    digest = source.digest or (pinned.digest if pinned is not None else None)
    job_digest = artifact.digest if artifact is not None and not isinstance(artifact, Obstacle) else None
    if digest is not None and job_digest != digest:
        is_replaced = job_digest is not None or _is_new_job(finetune_job, pinned)
        text = _describe_other(name, job_digest, digest) if is_replaced else ""
        entry = _find_entry(resource, spec, digest, before, pinned)
        if entry is not None:
            return Source(entry, pinned.fine_tune_job if pinned is not None else None, note=text)
        if is_replaced:
            return Obstacle(Reason.FINETUNE_JOB_REPLACED, text)
    if finetune_job is None or artifact is None:
        text = f"spec.adapter.fineTuneJobRef: there is no FineTuneJob {name!r} in this namespace: waiting for it"
        return Obstacle(Reason.FINETUNE_JOB_NOT_FOUND, text, stalled=False)
    if isinstance(artifact, Obstacle):
        return artifact
    return build_job_source(resource, spec, finetune_job, artifact)


def _find_pinned(resource: Object, finetune_job: str) -> AdapterVersion | None:
    """Find the version to which the FineTuneJob of this name was resolved by an earlier pass.

    A status that an older version of the operator wrote does not name the job: then its generation decides.
    """
    status = resource.get("status") or {}
    parsed = read_status(AdapterDeploymentStatus, status)
    desired = parsed.rollback.from_version if parsed.rollback is not None else parsed.desired
    if desired is None or desired.fine_tune_job is None:
        return desired if status.get("observedGeneration") == resource["metadata"].get("generation") else None
    return desired if desired.fine_tune_job.name == finetune_job else None


def _is_new_job(finetune_job: Object | None, pinned: AdapterVersion | None) -> bool:
    """Return whether the FineTuneJob was created again after its adapter was pinned."""
    if finetune_job is None or pinned is None or pinned.fine_tune_job is None or pinned.fine_tune_job.uid is None:
        return False
    return bool(finetune_job["metadata"]["uid"] != pinned.fine_tune_job.uid)


def _find_entry(
    resource: Object,
    spec: AdapterDeploymentSpec,
    digest: str,
    before: DesiredAdapter | None,
    pinned: AdapterVersion | None,
) -> DesiredAdapter | None:
    """Find how to serve a version that its FineTuneJob does not have any more."""
    if before is not None and before.version.digest == digest:
        return before
    return build_entry(resource, spec, pinned) if pinned is not None and _is_rolled_back(resource, digest) else None


def _is_rolled_back(resource: Object, digest: str) -> bool:
    rollback = read_status(AdapterDeploymentStatus, resource.get("status") or {}).rollback
    return rollback is not None and rollback.from_version.digest == digest


def _describe_other(name: str, job_digest: str | None, digest: str) -> str:
    if job_digest is None:
        state, remedy = "was created again and has no adapter yet", "spec.adapter.digest to its digest, once it has one"
    else:
        state, remedy = f"has the adapter {job_digest} now", f"spec.adapter.digest: {job_digest}"
    return f"FineTuneJob {name!r} {state}, but this AdapterDeployment serves {digest}. To change that, set {remedy}"


def check_target(
    name: str,
    adapter: AdapterStatus | None,
    target: ServingTarget,
    ref: WorkloadRef,
    versions: Collection[str | None] = (),
) -> Obstacle | None:
    """Check that the engine can serve what the AdapterDeployment ``name`` asks for, without its files.

    The check uses its arguments, the versions that its pods have reported, and the FineTuneJob's status.
    """
    container = f"container {target.container!r} of {ref}"
    misfits = find_misfits(name, adapter, target.engine_args, target.engine, container, versions)
    if not misfits:
        return None
    return Obstacle(misfits[0].reason, "; ".join(misfit.message for misfit in misfits))
