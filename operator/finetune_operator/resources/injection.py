"""Build what is applied to an inference Deployment: the agent and its volumes.

Pure: the Deployment in, the body of the server-side apply out. The body has only fields of ours; ``replicas``, the
engine's image and arguments, and all else stay the user's. It does not depend on an adapter's version, so that a new
version restarts no pod.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_api.messages import ADAPTERS_DIRECTORY, DESIRED_DIRECTORY, SECRETS_DIRECTORY
from finetune_engines.base import Engine
from finetune_operator.kube.kinds import DEPLOYMENT_ANNOTATION, FIELD_MANAGER, ROLE_LABEL
from finetune_operator.kube.ownership import field_step, find_owners, item_step
from finetune_operator.pod_defaults import PodDefaults
from finetune_operator.resources.injected import (
    ADAPTERS_VOLUME,
    AGENT_CONTAINER,
    INJECTION_ANNOTATION,
    SECRET_VOLUME,
    find_container,
    find_copiers,
    identify,
)
from finetune_operator.resources.names import fit, short
from finetune_operator.resources.security import agent_security_context, token_mount, token_volume

AGENT_ROLE, INJECTED_ROLE, DESIRED_ROLE = "agent", "injected", "desired-state"
DESIRED_VOLUME, SCRATCH_VOLUME = "finetune-desired", "finetune-scratch"
AGENT_PORT = 9480


@dataclass(frozen=True)
class AgentParameters:
    """The parameters of the agent in one Deployment."""

    container: str
    engine: Engine
    secrets: tuple[str, ...]
    image: str
    pull_policy: str
    report_url: str
    pods: PodDefaults = field(default_factory=PodDefaults)


def config_map_name(deployment: str) -> str:
    """Return the name of the ConfigMap with the desired state of a Deployment's pods."""
    name = f"finetune-adapters-{deployment}"
    return name if len(name) <= 253 else fit(deployment, "finetune-adapters")


def build_injection(deployment: dict[str, Any], parameters: AgentParameters) -> dict[str, Any]:
    """Build the body to apply. Its uid prevents that a Deployment is created which was deleted meanwhile."""
    name = deployment["metadata"]["name"]
    engine: dict[str, Any] = {
        "name": parameters.container,
        "volumeMounts": [{"name": ADAPTERS_VOLUME, "mountPath": ADAPTERS_DIRECTORY, "readOnly": True}],
    }
    variables = [
        {"name": name, "value": values[0]}
        for name, values in parameters.engine.environment.items()
        if not _user_sets(deployment, parameters.container, name, values)
    ]
    if variables:
        engine["env"] = variables
    template = {
        "metadata": {"labels": {ROLE_LABEL: AGENT_ROLE}, "annotations": {DEPLOYMENT_ANNOTATION: name}},
        "spec": {
            "initContainers": [_build_agent(parameters)],
            "containers": [engine],
            "volumes": [*_build_volumes(name, parameters.secrets), *_build_shared_volumes(parameters.pods)],
        },
    }
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "metadata": {
            **identify(deployment),
            "labels": {ROLE_LABEL: INJECTED_ROLE},
            "annotations": {INJECTION_ANNOTATION: digest},
        },
        "spec": {"template": template},
    }


def _user_sets(deployment: dict[str, Any], container: str, variable: str, values: Sequence[str]) -> bool:
    """Return whether another manager sets the variable to one of ``values``, or to what only the pod will know.

    Otherwise we set it ourselves. A manager that has set another value then appears as a conflict, with its name.
    """
    path = [
        *(field_step(name) for name in ("spec", "template", "spec", "containers")),
        item_step(name=container),
        field_step("env"),
        item_step(name=variable),
    ]
    if not find_owners(deployment, path) - {FIELD_MANAGER} - find_copiers(deployment):
        return False
    engine = find_container(deployment, container) or {}
    entry: dict[str, Any] = next((entry for entry in engine.get("env") or [] if entry["name"] == variable), {})
    return "valueFrom" in entry or str(entry.get("value", "")).strip().lower() in values


def _build_agent(parameters: AgentParameters) -> dict[str, Any]:
    environment: list[dict[str, Any]] = [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ]
    if parameters.report_url:
        environment.append({"name": "FINETUNE_REPORT_URL", "value": parameters.report_url})
    pods = parameters.pods
    own_names = {variable["name"] for variable in environment}
    environment += [variable.to_json() for variable in pods.env if variable.name not in own_names]
    agent = {
        "name": AGENT_CONTAINER,
        "image": parameters.image,
        "imagePullPolicy": parameters.pull_policy,
        "command": ["python", "-m", "finetune_agent"],
        "restartPolicy": "Always",
        "env": environment,
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": AGENT_PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 1,
        },
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": AGENT_PORT},
            "initialDelaySeconds": 60,
            "periodSeconds": 20,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "resources": pods.resources.agent.to_json(),
        "securityContext": agent_security_context(pods.fixed_user),
        "volumeMounts": [
            {"name": ADAPTERS_VOLUME, "mountPath": ADAPTERS_DIRECTORY},
            {"name": DESIRED_VOLUME, "mountPath": DESIRED_DIRECTORY, "readOnly": True},
            {"name": SCRATCH_VOLUME, "mountPath": "/tmp"},  # noqa: S108 -- in a pod
            token_mount(),
            *(
                {"name": secret_volume_name(name), "mountPath": f"{SECRETS_DIRECTORY}/{name}", "readOnly": True}
                for name in parameters.secrets
            ),
            *({**mount.to_json(), "name": _shared_volume_name(mount.name)} for mount in pods.volume_mounts),
        ],
    }
    if pods.env_from:
        agent["envFrom"] = [source.to_json() for source in pods.env_from]
    return agent


def _build_volumes(deployment: str, secrets: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"name": ADAPTERS_VOLUME, "emptyDir": {}},
        {"name": DESIRED_VOLUME, "configMap": {"name": config_map_name(deployment), "optional": True}},
        {"name": SCRATCH_VOLUME, "emptyDir": {}},
        token_volume(),
        *({"name": secret_volume_name(name), "secret": {"secretName": name, "optional": True}} for name in secrets),
    ]


def _build_shared_volumes(pods: PodDefaults) -> list[dict[str, Any]]:
    """Build the volumes that the administrator gives every pod, under names that no volume of the user has."""
    return [{**volume.to_json(), "name": _shared_volume_name(volume.name)} for volume in pods.volumes]


def _shared_volume_name(name: str) -> str:
    return f"finetune-shared-{short(name, 63 - len('finetune-shared-'))}"


def secret_volume_name(name: str) -> str:
    """Return the volume name of a Secret.

    It depends on no other Secret, so that one more Secret changes no other volume.
    """
    return f"{SECRET_VOLUME}{hashlib.sha256(name.encode()).hexdigest()[:10]}"
