"""Plan the agent's injection into a workload. Pure.

A change of the pods' template restarts every pod. So once the agent is there, the template stays as it is until the
workload replaces its pods for another reason: a new image of the agent and the Secret of one more adapter wait for
that, or for ``kubectl rollout restart``. With the strategy Rolling, another version changes the template.
"""

from collections.abc import Iterable
from dataclasses import replace

from finetune_api.messages import SECRETS_DIRECTORY
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import Object
from finetune_operator.kube.workloads import refer_to
from finetune_operator.reconcile.adapterdeployment.model import Injection, Obstacle, ServingTarget
from finetune_operator.resources.injected import (
    find_agent,
    has_agent,
    is_applied,
    is_rolling,
    list_secrets,
)
from finetune_operator.resources.injection import AgentParameters, build_injection
from finetune_operator.resources.workloads import is_observed, replaces_pods, rules_of
from finetune_operator.resources.workloads.pods import GUIDE
from finetune_operator.settings import Settings


def build_agent_parameters(target: ServingTarget, settings: Settings) -> AgentParameters:
    """Build the parameters of the agent, still without Secrets."""
    return AgentParameters(
        container=target.container,
        engine=target.engine,
        secrets=(),
        image=settings.operator_image,
        pull_policy=settings.image_pull_policy,
        report_url=settings.report_url,
        pods=settings.pods,
    )


def find_mounted_secrets(workload: Object | None, agent: AgentParameters) -> frozenset[str] | None:
    """Find the Secrets that the pods have mounted, if the template may not change now.

    None if it may: then the pods get every Secret that they need.
    """
    if workload is not None and not rules_of(refer_to(workload).kind).GETS_AGENT:
        return list_secrets(workload)
    if workload is None or replaces_pods(workload) or is_rolling(workload) != (agent.template_state is not None):
        return None
    return list_secrets(workload) if has_agent(workload, build_injection(workload, agent)) else None


def can_read(mounted: frozenset[str] | None, secret: str | None) -> bool:
    """Return whether the agents can read the Secret now."""
    return mounted is None or secret is None or secret in mounted


def check_secret(workload: Object, secret: str | None, mounted: frozenset[str] | None) -> Obstacle | None:
    """Check that the agents can read the Secret with the adapter's S3 credentials."""
    if mounted is None or can_read(mounted, secret):
        return None
    target = refer_to(workload)
    if not rules_of(target.kind).GETS_AGENT:
        text = (
            f"Secret {secret!r} is not mounted in the agents of {target}; mounted in all of them are: "
            f"{', '.join(sorted(mounted)) or 'none'}. Use one of these, or mount it at {SECRETS_DIRECTORY}/{secret} "
            f"({GUIDE})"
        )
        return Obstacle(Reason.RESTART_REQUIRED, text)
    text = (
        f"Secret {secret!r} is not mounted in the pods of {target}, and the operator restarts no pods for "
        f"it; mounted are: {', '.join(sorted(mounted)) or 'none'}. Use one of these, or replace the pods: "
        f"kubectl rollout restart {target.kubectl_name}"
    )
    return Obstacle(Reason.RESTART_REQUIRED, text, stalled=is_observed(workload))


def plan_injection(
    workload: Object, agent: AgentParameters, secrets: Iterable[str | None], mounted: frozenset[str] | None
) -> Injection:
    """Plan what is applied to the workload, now or when its pods are replaced.

    ``mounted`` are the Secrets of ``find_mounted_secrets``.
    """
    required = tuple(sorted({secret for secret in secrets if secret is not None}))
    body = build_injection(workload, replace(agent, secrets=required))
    if is_applied(workload, body):
        return Injection(body, due=False)
    if mounted is None:
        return Injection(body, due=True)
    return Injection(body, due=False, pending=_describe_difference(workload, agent, frozenset(required), mounted))


def _describe_difference(
    workload: Object, agent: AgentParameters, required: frozenset[str], mounted: frozenset[str]
) -> str:
    image = (find_agent(workload) or {}).get("image")
    parts = []
    if image != agent.image:
        parts.append(f"A newer agent is available: the pods have image {image}, this operator has {agent.image}.")
    if missing := sorted(required - mounted):
        parts.append(f"Not mounted yet: Secret {', '.join(missing)}.")
    if superfluous := sorted(mounted - required):
        parts.append(f"Still mounted, though no adapter needs it: Secret {', '.join(superfluous)}.")
    return " ".join(parts) or "The operator would now give the agent other settings."
