"""Plan the agent's injection into a Deployment. Pure.

A change of the pods' template restarts every pod. So once the agent is there, the template stays as it is until the
Deployment replaces its pods for another reason: a new image of the agent and the Secret of one more adapter wait for
that, or for ``kubectl rollout restart``.
"""

from collections.abc import Iterable
from dataclasses import replace

from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.reconcile.adapterdeployment.model import Injection, Obstacle, ServingTarget
from finetune_operator.resources.injected import (
    find_agent,
    has_agent,
    is_applied,
    is_observed,
    list_secrets,
    replaces_pods,
)
from finetune_operator.resources.injection import AgentParameters, build_injection
from finetune_operator.settings import Settings


def build_agent_parameters(lead: ServingTarget, settings: Settings) -> AgentParameters:
    """Build the parameters of the agent, still without Secrets."""
    return AgentParameters(
        container=lead.container,
        engine=lead.engine,
        secrets=(),
        image=settings.operator_image,
        pull_policy=settings.image_pull_policy,
        report_url=settings.report_url,
        pods=settings.pods,
    )


def find_held_secrets(deployment: Object | None, agent: AgentParameters) -> frozenset[str] | None:
    """Find the Secrets that the pods have as long as they are not replaced.

    None if the template may change now, so that they get every Secret.
    """
    if deployment is None or replaces_pods(deployment) or not has_agent(deployment, build_injection(deployment, agent)):
        return None
    return list_secrets(deployment)


def can_read(held: frozenset[str] | None, secret: str | None) -> bool:
    """Return whether the agents can read the Secret now."""
    return held is None or secret is None or secret in held


def check_secret(deployment: Object, secret: str | None, held: frozenset[str] | None) -> Obstacle | None:
    """Check that the agents can read the Secret with the adapter's S3 credentials."""
    if held is None or can_read(held, secret):
        return None
    name = deployment["metadata"]["name"]
    text = (
        f"Secret {secret!r} is not mounted in the pods of Deployment {name!r}, and the operator restarts no pods for "
        f"it; mounted are: {', '.join(sorted(held)) or 'none'}. Use one of these, or replace the pods: "
        f"kubectl rollout restart deployment/{name}"
    )
    return Obstacle(Reason.RESTART_REQUIRED, text, stalled=is_observed(deployment))


def plan_injection(
    deployment: Object, agent: AgentParameters, secrets: Iterable[str | None], held: frozenset[str] | None
) -> Injection:
    """Plan what is applied to the Deployment, now or when its pods are replaced.

    ``held`` are the Secrets that ``find_held_secrets`` found.
    """
    wanted = tuple(sorted({secret for secret in secrets if secret is not None}))
    body = build_injection(deployment, replace(agent, secrets=wanted))
    if is_applied(deployment, body):
        return Injection(body, due=False)
    if held is None:
        return Injection(body, due=True)
    return Injection(body, due=False, held=_describe_difference(deployment, agent, frozenset(wanted), held))


def _describe_difference(
    deployment: Object, agent: AgentParameters, wanted: frozenset[str], held: frozenset[str]
) -> str:
    image = (find_agent(deployment) or {}).get("image")
    parts = []
    if image != agent.image:
        parts.append(f"A newer agent is available: the pods have image {image}, this operator has {agent.image}.")
    if missing := sorted(wanted - held):
        parts.append(f"Not mounted yet: Secret {', '.join(missing)}.")
    if superfluous := sorted(held - wanted):
        parts.append(f"Still mounted, though no adapter needs it: Secret {', '.join(superfluous)}.")
    return " ".join(parts) or "The operator would now give the agent other settings."
