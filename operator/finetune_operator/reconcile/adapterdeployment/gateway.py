"""Check that a gateway follows the InferenceModelRewrite of an AdapterDeployment. Pure."""

from finetune_api.adapterdeployment import Traffic
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Observed, Obstacle
from finetune_operator.resources.model_rewrite import find_own, find_stronger, is_ours
from finetune_operator.settings import Settings

MAX_NAMED = 3
"""Maximum number of pods that a message names."""
FIELD = "spec.strategy.canary.traffic.inferenceModelRewrite"


def check_gateway(
    observed: Observed, resource: Object, served_name: str, traffic: Traffic, settings: Settings
) -> Obstacle | None:
    """Check the gateway before any pod changes; None if it follows the rewrite.

    Args:
        observed: The serving group.
        resource: The AdapterDeployment.
        served_name: Its served name.
        traffic: Its ``spec.strategy.canary.traffic``.
        settings: The operator's settings.
    """
    reference = traffic.inference_model_rewrite
    gateway, pool = observed.gateways[resource["metadata"]["name"]], reference.pool_ref.name
    if not settings.model_rewrites:
        text = f"{FIELD}: the administrator does not allow it (chart value traffic.inferenceModelRewrites.enabled)"
        return Obstacle(Reason.TRAFFIC_NOT_ALLOWED, text)
    if gateway.problem:
        text = (
            f"{FIELD}.group: {gateway.problem}. Install the CRDs of the Gateway API Inference Extension, or name the "
            "group that they have here"
        )
        return Obstacle(Reason.GATEWAY_NOT_READY, text)
    if gateway.pool is None:
        text = f"{FIELD}.poolRef: there is no InferencePool {pool!r} in this namespace: waiting for it"
        return Obstacle(Reason.GATEWAY_NOT_READY, text, stalled=False)
    if unmatched := _find_unmatched(gateway.pool, observed.workload):
        text = f"{FIELD}.poolRef: InferencePool {pool!r} chooses pods with {unmatched}, and those of {observed.target} "
        return Obstacle(Reason.GATEWAY_NOT_READY, f"{text}do not have it: name the pool that has these pods")
    if gateway.other_pods:
        others = ", ".join(gateway.other_pods[:MAX_NAMED])
        text = (
            f"{FIELD}.poolRef: InferencePool {pool!r} also chooses pods that {observed.target} does not have "
            f"({others}): a request for {served_name!r} would fail there. Give them a label, and a pool, of their own"
        )
        return Obstacle(Reason.GATEWAY_NOT_READY, text)
    own = find_own(gateway.rewrites, resource)
    if own is not None and not is_ours(own, resource):
        text = f"somebody else has an InferenceModelRewrite {own['metadata']['name']!r}: rename or delete it"
        return Obstacle(Reason.REWRITE_TAKEN, text)
    stronger = find_stronger(gateway.rewrites, resource, pool, served_name)
    if stronger is not None:
        text = (
            f"InferenceModelRewrite {stronger['metadata']['name']!r} is for the model {served_name!r} too, and the "
            "gateway follows the oldest one: remove that rule, or choose another servedName"
        )
        return Obstacle(Reason.REWRITE_TAKEN, text)
    return None


def _find_unmatched(pool: Object, workload: Object | None) -> str:
    """Find a label of the pool's selector that the workload's pods do not have; empty if they have all."""
    template = (workload or {}).get("spec", {}).get("template", {})
    labels = template.get("metadata", {}).get("labels") or {}
    wanted = pool["spec"].get("selector", {}).get("matchLabels") or {}
    missing = (f"{key}={value}" for key, value in wanted.items() if labels.get(key) != value)
    return next(missing, "") if workload is not None else ""
