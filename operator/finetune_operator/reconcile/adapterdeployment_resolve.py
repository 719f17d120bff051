"""Which adapter an AdapterDeployment means, and whether the target can serve it: checked before any pod is touched. Pure."""

from collections.abc import Mapping

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import S3Location
from finetune_api.conditions import ConditionType
from finetune_api.finetunejob import AdapterStatus, FineTuneJobSpec
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_operator.conditions import find
from finetune_operator.kube.kinds import Object
from finetune_operator.policies.engine_args import read_engine_args
from finetune_operator.reconcile.adapterdeployment_model import Obstacle, Target
from finetune_operator.resources.injection import find_container


def find_target(deployment: Object | None, name: str, spec: AdapterDeploymentSpec) -> Target | Obstacle:
    """The Deployment as a target of this AdapterDeployment."""
    if deployment is None:
        return Obstacle(
            Reason.TARGET_NOT_FOUND,
            f"spec.target.deploymentRef: there is no Deployment {name!r} in this namespace: waiting for it",
            stalled=False,
        )
    container = find_container(deployment, spec.target.container)
    if container is None:
        names = ", ".join(item["name"] for item in deployment["spec"]["template"]["spec"].get("containers") or [])
        return Obstacle(
            Reason.CONTAINER_NOT_FOUND,
            f"spec.target.container: Deployment {name!r} has no container {spec.target.container!r}; it has {names}",
        )
    secret = spec.target.api_key_secret_ref
    engine = ENGINES[spec.target.engine]
    return Target(
        spec.target.container,
        spec.target.port,
        secret.name if secret else None,
        engine,
        read_engine_args(container, engine),
    )


def resolve(
    item: Object, spec: AdapterDeploymentSpec, jobs: Mapping[str, Object], before: DesiredAdapter | None
) -> tuple[DesiredAdapter | None, AdapterStatus | None, Obstacle | None]:
    """What the AdapterDeployment wants the pods to serve, with what its job says of the adapter; or why that is not known.

    ``before`` is what the pods were told last: an adapter that was resolved once stays, also when its FineTuneJob is deleted.
    """
    source = spec.adapter
    if source.uri is not None and source.digest is not None:
        secret = source.secret_ref.name if source.secret_ref else None
        return _entry(item, spec, DesiredVersion(uri=source.uri, digest=source.digest), source.s3, secret), None, None
    name = source.finetune_job_ref.name if source.finetune_job_ref else ""
    job = jobs.get(name)
    if job is None:
        if before is not None and _resolved_from(item) == before.version.digest:
            return before, None, None
        text = f"spec.adapter.fineTuneJobRef: there is no FineTuneJob {name!r} in this namespace: waiting for it"
        return None, None, Obstacle(Reason.FINETUNE_JOB_NOT_FOUND, text, stalled=False)
    status = job.get("status") or {}
    ready = find(status.get("conditions") or [], ConditionType.READY)
    stalled = find(status.get("conditions") or [], ConditionType.STALLED)
    if stalled is not None and stalled["status"] == "True":
        text = f"FineTuneJob {name!r} failed and so has no adapter: {stalled['reason']}: {stalled['message']}"
        return None, None, Obstacle(Reason.FINETUNE_JOB_FAILED, text)
    if ready is None or ready["status"] != "True" or not status.get("adapter"):
        percent = (status.get("progress") or {}).get("percent")
        phase = f"{status.get('phase', 'Pending')}{'' if percent is None else f', {percent} %'}"
        return (
            None,
            None,
            Obstacle(
                Reason.ADAPTER_NOT_READY, f"waiting for the adapter of FineTuneJob {name!r} ({phase})", stalled=False
            ),
        )
    adapter = AdapterStatus.model_validate(status["adapter"])
    output = FineTuneJobSpec.model_validate(job["spec"]).output
    reference = source.secret_ref or output.secret_ref
    version = DesiredVersion(uri=adapter.uri, digest=adapter.digest)
    return _entry(item, spec, version, output.s3, reference.name if reference else None), adapter, None


def check(adapter: AdapterStatus | None, target: Target, deployment: str) -> Obstacle | None:
    """Whether the engine can serve the adapter, as far as the engine's arguments and the FineTuneJob's status tell."""
    engine = target.engine
    if target.engine_args.lora is False:
        return Obstacle(
            Reason.LORA_DISABLED,
            f"container {target.container!r} of Deployment {deployment!r} starts {engine.title} without {engine.lora_argument}, "
            "so it can serve no adapter: add the argument",
        )
    if adapter is None:
        return None
    if engine.name not in adapter.servable_by:
        found = ", ".join(adapter.servable_by) or "no engine"
        return Obstacle(
            Reason.ADAPTER_UNSUPPORTED,
            f"{engine.title} cannot serve this adapter (method {adapter.peft_type}; it can be served by {found}): "
            "train it with lora or qlora",
        )
    maximum = target.engine_args.max_lora_rank
    if maximum is not None and adapter.rank is not None and adapter.rank > maximum:
        return Obstacle(
            Reason.RANK_TOO_HIGH,
            f"the adapter's rank is {adapter.rank}, the maximum of container {target.container!r} "
            f"({engine.max_rank_argument}) is {maximum}: {engine.rank_remedy(adapter.rank, maximum)}",
        )
    return None


def _entry(
    item: Object, spec: AdapterDeploymentSpec, version: DesiredVersion, location: S3Location | None, secret: str | None
) -> DesiredAdapter:
    return DesiredAdapter(
        deployment=item["metadata"]["name"],
        served_name=spec.served_name,
        version=version,
        endpoint=location.endpoint if location else None,
        region=location.region if location else None,
        secret=secret,
        tolerance=spec.verification.tolerance,
    )


def _resolved_from(item: Object) -> str | None:
    """The digest that this generation of the AdapterDeployment was resolved to before."""
    status = item.get("status") or {}
    digest: str | None = (status.get("desired") or {}).get("digest")
    return digest if status.get("observedGeneration") == item["metadata"].get("generation") else None
