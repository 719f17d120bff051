"""Build the body that is applied to an inference workload: the agent and its volumes. Pure.

The body has only fields of ours; ``replicas``, the engine's image and arguments, and all other fields stay the user's.
With the strategy Hot it does not depend on an adapter's version, so that a new version restarts no pod.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_api.messages import ADAPTERS_DIRECTORY, DESIRED_DIRECTORY, SECRETS_DIRECTORY, DesiredState
from finetune_engines.base import Engine
from finetune_operator.kube.kinds import DEPLOYMENT, DEPLOYMENT_ANNOTATION, FIELD_MANAGER, POD, ROLE_LABEL
from finetune_operator.kube.ownership import field_step, find_owners, item_step
from finetune_operator.kube.workloads import read_group, refer_to
from finetune_operator.pod_defaults import PodDefaults
from finetune_operator.resources.injected import (
    ADAPTERS_VOLUME,
    AGENT_CONTAINER,
    INJECTION_ANNOTATION,
    SECRET_VOLUME,
    VERSIONS_VOLUME,
    find_container,
    find_copiers,
    identify,
)
from finetune_operator.resources.names import fit, short
from finetune_operator.resources.rolling import (
    build_annotations,
    build_fetch_container,
    build_path_variables,
    build_versions_volume,
    loads_at_start,
)
from finetune_operator.resources.security import agent_security_context, token_mount, token_volume

AGENT_ROLE, INJECTED_ROLE, DESIRED_ROLE = "agent", "injected", "desired-state"
DESIRED_VOLUME, SCRATCH_VOLUME = "finetune-desired", "finetune-scratch"
AGENT_PORT = 9480


@dataclass(frozen=True)
class AgentParameters:
    """The parameters of the agent in one workload."""

    container: str
    engine: Engine
    secrets: tuple[str, ...]
    image: str
    pull_policy: str
    report_url: str
    pods: PodDefaults = field(default_factory=PodDefaults)
    template_state: DesiredState | None = None
    """With the strategy Rolling: the desired state in the pod template. None: the agents read the ConfigMap."""


def config_map_name(group: str) -> str:
    """Return the name of the ConfigMap with the desired state of a serving group.

    A Deployment's begins with ``finetune-adapters-``, and that of another kind with ``finetune-adapters.``. That of a
    selector has a digest of it.
    """
    workload = read_group(group)
    if workload.kind is POD:
        return f"finetune-adapters.pods.{hashlib.sha256(workload.name.encode()).hexdigest()[:10]}"
    separator = "-" if workload.kind is DEPLOYMENT else "."
    name = f"finetune-adapters{separator}{group.replace('/', '.')}"
    return name if len(name) <= 253 else fit(group.replace("/", "."), "finetune-adapters")


def build_injection(workload: dict[str, Any], parameters: AgentParameters) -> dict[str, Any]:
    """Build the body to apply. It has the uid, so that a workload that was deleted meanwhile is not created again."""
    group, state = refer_to(workload).group, parameters.template_state
    annotations = {DEPLOYMENT_ANNOTATION: group, **(build_annotations(state) if state else {})}
    template = _build_template(group, parameters, _build_variables(workload, parameters))
    template["metadata"]["annotations"] = annotations
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "metadata": {
            **identify(workload),
            "labels": {ROLE_LABEL: INJECTED_ROLE},
            "annotations": {INJECTION_ANNOTATION: digest},
        },
        "spec": {"template": template},
    }


def build_snippet(group: str, parameters: AgentParameters) -> dict[str, Any]:
    """Build the agent that a user adds to the template of pods that only a selector names (strategy Hot)."""
    variables = [{"name": name, "value": values[0]} for name, values in parameters.engine.environment.items()]
    return _build_template(group, parameters, variables)


def _build_template(group: str, parameters: AgentParameters, variables: list[dict[str, str]]) -> dict[str, Any]:
    """Build the part of a pod template that has the agent, and ``variables`` of the engine."""
    engine: dict[str, Any] = {
        "name": parameters.container,
        "volumeMounts": [{"name": ADAPTERS_VOLUME, "mountPath": ADAPTERS_DIRECTORY, "readOnly": True}],
    }
    if variables:
        engine["env"] = variables
    agent = _build_agent(parameters)
    return {
        "metadata": {"labels": {ROLE_LABEL: AGENT_ROLE}},
        "spec": {
            "initContainers": [agent, build_fetch_container(agent)] if parameters.template_state else [agent],
            "containers": [engine],
            "volumes": [*_build_volumes(group, parameters), *_build_shared_volumes(parameters.pods)],
        },
    }


def _build_variables(workload: dict[str, Any], parameters: AgentParameters) -> list[dict[str, str]]:
    """Build the variables of the engine: the versions' directories, and what lets it load at run time."""
    state, container = parameters.template_state, parameters.container
    paths = build_path_variables(state) if state else {}
    needed = {} if state and loads_at_start(workload, container, state) else parameters.engine.environment
    switches = {name: values[0] for name, values in needed.items() if not _user_sets(workload, container, name, values)}
    return [{"name": name, "value": value} for name, value in {**switches, **paths}.items()]


def _user_sets(workload: dict[str, Any], container: str, variable: str, values: Sequence[str]) -> bool:
    """Return whether another manager sets the variable to one of ``values``, or by ``valueFrom``.

    Otherwise the operator sets it. A manager that has set another value then appears as a conflict, with its name.
    """
    path = [
        *(field_step(name) for name in ("spec", "template", "spec", "containers")),
        item_step(name=container),
        field_step("env"),
        item_step(name=variable),
    ]
    if not find_owners(workload, path) - {FIELD_MANAGER} - find_copiers(workload):
        return False
    engine = find_container(workload, container) or {}
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
        "ports": [{"name": AGENT_CONTAINER, "containerPort": AGENT_PORT, "protocol": "TCP"}],
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
            {
                "name": VERSIONS_VOLUME if parameters.template_state else DESIRED_VOLUME,
                "mountPath": DESIRED_DIRECTORY,
                "readOnly": True,
            },
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


def _build_volumes(group: str, parameters: AgentParameters) -> list[dict[str, Any]]:
    desired = {"name": DESIRED_VOLUME, "configMap": {"name": config_map_name(group), "optional": True}}
    return [
        {"name": ADAPTERS_VOLUME, "emptyDir": {}},
        build_versions_volume() if parameters.template_state else desired,
        {"name": SCRATCH_VOLUME, "emptyDir": {}},
        token_volume(),
        *(
            {"name": secret_volume_name(name), "secret": {"secretName": name, "optional": True}}
            for name in parameters.secrets
        ),
    ]


def _build_shared_volumes(pods: PodDefaults) -> list[dict[str, Any]]:
    """Build the administrator's volumes of every pod, under names that no volume of the user has."""
    return [{**volume.to_json(), "name": _shared_volume_name(volume.name)} for volume in pods.volumes]


def _shared_volume_name(name: str) -> str:
    return f"finetune-shared-{short(name, 63 - len('finetune-shared-'))}"


def secret_volume_name(name: str) -> str:
    """Return the volume name of a Secret.

    It depends on no other Secret, so that one more Secret changes no other volume.
    """
    return f"{SECRET_VOLUME}{hashlib.sha256(name.encode()).hexdigest()[:10]}"
