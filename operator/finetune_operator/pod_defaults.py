"""Define the administrator's settings of every pod of the operator: the chart's values ``pods``.

A FineTuneJob's own ``spec.podTemplate`` and ``spec.resources`` have precedence.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from finetune_api.base import Model, SecretRef
from finetune_api.core_v1.environment import EnvFromSource, EnvVar
from finetune_api.core_v1.lists import KeyedBy, Labels
from finetune_api.core_v1.network import DnsConfig, DnsPolicy, HostAlias
from finetune_api.core_v1.security import PodSecurityContext
from finetune_api.core_v1.selectors import Toleration
from finetune_api.core_v1.volumes import Volume, VolumeMount
from finetune_api.finetunejob import ContainerResources, PodTemplate


class RoleResources(Model):
    """CPU and memory of the pods, by role."""

    trainer: ContainerResources = ContainerResources(
        requests={"cpu": "500m", "memory": "2Gi"}, limits={"cpu": "16", "memory": "64Gi"}
    )
    """Amounts for each GPU; a job without GPUs gets them once."""
    preflight: ContainerResources = ContainerResources(
        requests={"cpu": "100m", "memory": "512Mi"}, limits={"cpu": "2", "memory": "2Gi"}
    )
    """Amounts of preflight pods and of clean-up pods."""
    merge: ContainerResources = ContainerResources(
        requests={"cpu": "500m", "memory": "2Gi"}, limits={"cpu": "16", "memory": "64Gi"}
    )
    agent: ContainerResources = ContainerResources(
        requests={"cpu": "10m", "memory": "96Mi"}, limits={"cpu": "1", "memory": "512Mi"}
    )


class PodDefaults(Model):
    """Settings of every pod. Variables, volumes and mounts are also those of the agents in inference pods."""

    fixed_user: bool = True
    """Run as user 65532. False: as the user that the cluster assigns."""
    env: Annotated[list[EnvVar], KeyedBy("name")] = []
    env_from: list[EnvFromSource] = []
    volumes: Annotated[list[Volume], KeyedBy("name")] = []
    volume_mounts: Annotated[list[VolumeMount], KeyedBy("mountPath")] = []
    image_pull_secrets: Annotated[list[SecretRef], KeyedBy("name")] = []
    tolerations: list[Toleration] = []
    host_aliases: Annotated[list[HostAlias], KeyedBy("ip")] = []
    dns_policy: Literal["", DnsPolicy] = ""
    dns_config: DnsConfig = DnsConfig()
    preflight_node_selector: Labels = {}
    """Labels that a node must have to run preflight, merge and clean-up pods. Trainer pods have spec.podTemplate."""
    resources: RoleResources = RoleResources()


def complete_template(template: PodTemplate, defaults: PodDefaults) -> PodTemplate:
    """Return the template with the administrator's settings added."""
    changes: dict[str, Any] = {
        "env": _merge(defaults.env, template.env, "name"),
        "env_from": [*defaults.env_from, *(template.env_from or ())],
        "volumes": _merge(defaults.volumes, template.volumes, "name"),
        "volume_mounts": _merge(defaults.volume_mounts, template.volume_mounts, "mount_path"),
        "image_pull_secrets": _merge(defaults.image_pull_secrets, template.image_pull_secrets, "name"),
        "tolerations": [*defaults.tolerations, *template.tolerations],
        "host_aliases": _merge(defaults.host_aliases, template.host_aliases, "ip"),
        "dns_policy": template.dns_policy or defaults.dns_policy or None,
        "dns_config": template.dns_config or defaults.dns_config,
    }
    if template.security_context is None and not defaults.fixed_user:
        changes["security_context"] = PodSecurityContext()
    return template.model_copy(update=changes)


def _merge(defaults: Iterable[Model], job_items: Iterable[Model] | None, key: str) -> list[Model]:
    """Merge two lists; of two items with one key the job's own stays."""
    return list({getattr(item, key): item for item in (*defaults, *(job_items or ()))}.values())
