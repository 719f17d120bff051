"""Build the pods of a FineTuneJob's Jobs, from its ``spec.podTemplate``."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from finetune_api.base import Model
from finetune_api.finetunejob import FineTuneJobSpec, PodTemplate
from finetune_operator.kube.kinds import Object
from finetune_operator.pod_defaults import complete_template
from finetune_operator.resources.mounts import (
    Volumes,
    build_merge_volumes,
    build_model_cache,
    build_output_volumes,
    build_shared_memory,
    build_volumes,
)
from finetune_operator.resources.requirements import (
    build_merge_requirements,
    build_preflight_requirements,
    build_trainer_requirements,
)
from finetune_operator.resources.security import container_security_context, pod_security_context
from finetune_operator.settings import Settings


def build_pod(spec: FineTuneJobSpec, container: Object, settings: Settings, *own_volumes: Volumes) -> Object:
    """Build the spec of a pod with one container.

    It has the template's settings of network and identity, with which every pod of a job reaches the same services.

    Args:
        spec: The FineTuneJob's spec.
        container: Name, image, command, variables and resources of the container.
        settings: The operator's settings.
        own_volumes: The operator's own volumes, and their mounts.
    """
    template = complete_template(spec.pod_template, settings.pods)
    volumes, mounts = (list(chain(*lists)) for lists in zip(*own_volumes, strict=True))
    own_container = {
        **container,
        "env": _merge_variables(container["env"], template),
        "envFrom": _dump(template.env_from),
        "imagePullPolicy": settings.image_pull_policy,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security_context(),
        "volumeMounts": mounts,
    }
    pod = {
        "serviceAccountName": template.service_account_name,
        "tolerations": _dump(template.tolerations),
        "hostAliases": _dump(template.host_aliases),
        "dnsPolicy": template.dns_policy,
        "dnsConfig": template.dns_config.to_json() if template.dns_config else None,
        "imagePullSecrets": _dump(template.image_pull_secrets),
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security_context(template.security_context),
        "containers": [_drop_unset(own_container)],
        "volumes": volumes,
    }
    return _add_volumes(_drop_unset(pod), _dump(template.volumes), _dump(template.volume_mounts))


def build_preflight_pod(spec: FineTuneJobSpec, container: Object, settings: Settings, *more: Volumes) -> Object:
    """Build the spec of a preflight's pod."""
    resources = build_preflight_requirements(spec.resources, settings.pods)
    return _build_cpu_pod(spec, {**container, "resources": resources}, settings, build_volumes(spec), *more)


def build_merge_pod(spec: FineTuneJobSpec, container: Object, settings: Settings, needed_bytes: int | None) -> Object:
    """Build the spec of the pod that merges the finished adapter. ``needed_bytes`` is its memory, if it is known."""
    resources = build_merge_requirements(spec.resources, needed_bytes, settings.pods)
    own_volumes = build_merge_volumes(spec), build_model_cache(spec, read_only=True)
    return _build_cpu_pod(spec, {**container, "resources": resources}, settings, *own_volumes)


def build_clean_up_pod(spec: FineTuneJobSpec, container: Object, settings: Settings) -> Object:
    """Build the spec of a clean-up's pod."""
    resources = build_preflight_requirements(spec.resources, settings.pods)
    return _build_cpu_pod(spec, {**container, "resources": resources}, settings, build_output_volumes(spec))


def _build_cpu_pod(spec: FineTuneJobSpec, container: Object, settings: Settings, *own_volumes: Volumes) -> Object:
    """Build the spec of a pod of a job that needs no GPUs."""
    pod = build_pod(spec, container, settings, *own_volumes)
    selector = settings.pods.preflight_node_selector
    return {"nodeSelector": selector, **pod} if selector else pod


def build_trainer_pod(
    spec: FineTuneJobSpec, container: Object, settings: Settings, avoided_nodes: Sequence[str]
) -> Object:
    """Build the spec of a trainer pod, with its placement and privileges."""
    template = spec.pod_template
    resources = build_trainer_requirements(spec.resources, settings.pods)
    own_volumes = build_volumes(spec), build_shared_memory(spec), build_model_cache(spec, read_only=True)
    pod = build_pod(spec, {**container, "resources": resources}, settings, *own_volumes)
    (own_container,) = pod["containers"]
    own_container["securityContext"] = container_security_context(template.container_security_context)
    placement = {
        "nodeSelector": template.node_selector,
        "affinity": _build_affinity(template, avoided_nodes),
        "topologySpreadConstraints": _dump(template.topology_spread_constraints),
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name,
        "schedulerName": template.scheduler_name,
        "hostNetwork": template.host_network,
        "hostIPC": template.host_ipc,
        "hostPID": template.host_pid,
        "terminationGracePeriodSeconds": template.termination_grace_period_seconds,
    }
    return {**_drop_unset(placement), **pod}


def _add_volumes(pod: Object, volumes: Sequence[Object], mounts: Sequence[Object]) -> Object:
    """Return the pod with more volumes, mounted in its one container.

    A mount replaces one at the same path; the volume of a replaced mount is left out.
    """
    (container,) = pod["containers"]
    by_path = {mount["mountPath"]: mount for mount in (*container["volumeMounts"], *mounts)}
    mounted = {mount["name"] for mount in by_path.values()}
    return {
        **pod,
        "containers": [{**container, "volumeMounts": list(by_path.values())}],
        "volumes": [*(volume for volume in pod["volumes"] if volume["name"] in mounted), *volumes],
    }


def _merge_variables(own_variables: Sequence[Object], template: PodTemplate) -> list[Object]:
    """Merge the variables: first the operator's, so that others may refer to them as ``$(NAME)``."""
    return list({variable["name"]: variable for variable in (*own_variables, *_dump(template.env))}.values())


def _build_affinity(template: PodTemplate, avoided_nodes: Sequence[str]) -> Object:
    """Build the affinity: the user's, and a preference for other nodes than those to avoid.

    It is only a preference, so that a job also continues in a cluster of one node.
    """
    affinity: Object = template.affinity.to_json() if template.affinity else {}
    if not avoided_nodes:
        return affinity
    avoided = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in avoided_nodes]
    avoidance = {"weight": 100, "preference": {"matchFields": avoided}}
    nodes = affinity.get("nodeAffinity", {})
    field = "preferredDuringSchedulingIgnoredDuringExecution"
    return {**affinity, "nodeAffinity": {**nodes, field: [*nodes.get(field, []), avoidance]}}


def _dump(models: Sequence[Model] | None) -> list[Object]:
    return [model.to_json() for model in models or ()]


def _drop_unset(fields: dict[str, Any]) -> Object:
    return {name: value for name, value in fields.items() if value not in (None, [], {})}
