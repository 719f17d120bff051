"""Define ``spec.resources`` and ``spec.podTemplate``: the pods of a job."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from finetune_api.base import Model, SecretRef
from finetune_api.core_v1.environment import EnvFromSource, EnvVar
from finetune_api.core_v1.lists import MAX_ITEMS, MAX_TEXT, Annotations, KeyedBy, Labels, LongText, Name
from finetune_api.core_v1.network import DnsConfig, DnsPolicy, HostAlias
from finetune_api.core_v1.quantity import Quantities, parse_quantity
from finetune_api.core_v1.security import PodSecurityContext, SecurityContext
from finetune_api.core_v1.selectors import Affinity, Toleration, TopologySpreadConstraint
from finetune_api.core_v1.volumes import Volume, VolumeMount
from finetune_api.limits import MAX_COUNT

Words = Annotated[list[LongText], Field(min_length=1, max_length=MAX_ITEMS)]
ALSO_PREFLIGHT = "It also applies to preflight and clean-up pods."
ARGS_ALONE = "args needs command: set podTemplate.command too, or remove args"
UNKNOWN_VOLUME = (
    "volumeMounts names a volume that is not in volumes: add it to podTemplate.volumes, or correct the name"
)


REQUEST_ABOVE_LIMIT = "a request is above its limit: lower the request, or raise the limit"
COMPARED = ("cpu", "memory", "ephemeral-storage")
"""Resources whose request is compared with the limit. Comparing all of them would cost the API server too much."""
REQUEST_RULE = {
    "rule": "!has(self.requests) || !has(self.limits) || ("
    + " && ".join(
        f"(!('{name}' in self.requests && '{name}' in self.limits) || "
        f"quantity(string(self.requests['{name}'])).compareTo(quantity(string(self.limits['{name}']))) <= 0)"
        for name in COMPARED
    )
    + ")",
    "message": REQUEST_ABOVE_LIMIT,
    "fieldPath": ".requests",
}


NAMES_OF_GPUS = ("nvidia.com/gpu", "amd.com/gpu", "gpu", "gpus", "gpusPerNode")
"""What users write for a GPU. The pod gets as many as gpusPerNode says."""


def gpu_rule(amounts: str) -> dict[str, str]:
    """Return the CEL rule that requests or limits have no GPUs."""
    names = ["self.gpuResourceName", *(f"'{name}'" for name in NAMES_OF_GPUS)]
    rule = " || ".join(f"{name} in self.{amounts}" for name in names)
    return {
        "rule": f"!has(self.{amounts}) || !({rule})",
        "message": f"{amounts} must not have GPUs: write their number in resources.gpusPerNode, and remove them here",
        "fieldPath": f".{amounts}",
    }


GPU_RULES = [gpu_rule("requests"), gpu_rule("limits")]


def check_requests(requests: dict[str, int | str], limits: dict[str, int | str]) -> None:
    """Check that no request is above its limit.

    Raises:
        ValueError: A request is above its limit.
    """
    compared = [name for name in COMPARED if name in requests and name in limits]
    if any(parse_quantity(requests[name]) > parse_quantity(limits[name]) for name in compared):
        raise ValueError(REQUEST_ABOVE_LIMIT)


class ContainerResources(Model):
    """CPU and memory of a container."""

    requests: Quantities = Field(default_factory=dict, description="Amounts that the scheduler reserves on a node.")
    limits: Quantities = Field(default_factory=dict, description="Amounts that the container cannot exceed.")

    cel_rules: ClassVar[list[dict[str, str]]] = [REQUEST_RULE]

    @model_validator(mode="after")
    def _check(self) -> "ContainerResources":
        check_requests(self.requests, self.limits)
        return self


class Resources(Model):
    """The resources that the trainer pod requests from the cluster."""

    gpus_per_node: int = Field(
        1,
        description="Number of GPUs of the trainer pod. Each GPU runs one process with perDeviceBatchSize sequences. "
        "0: train on the CPU.",
        ge=0,
        le=16,
    )
    gpu_resource_name: str = Field(
        "nvidia.com/gpu",
        description="Name of the extended resource that counts GPUs, for example nvidia.com/gpu.",
        max_length=317,
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
    )
    requests: Quantities = Field(
        default_factory=dict,
        description="Requests of the trainer container, such as CPU and memory. A request that is left out comes from "
        "the chart value pods.resources.trainer, once for each GPU.",
    )
    limits: Quantities = Field(
        default_factory=dict,
        description="Limits of the trainer container, such as CPU and memory. A limit that is left out comes from the "
        "chart value pods.resources.trainer, once for each GPU, and is at least the request.",
    )
    preflight: ContainerResources | None = Field(
        None,
        description="CPU and memory of preflight and clean-up pods. What is left out comes from the chart value "
        "pods.resources.preflight.",
    )
    merge: ContainerResources | None = Field(
        None,
        description="CPU and memory of the pod that makes output.mergedModel. What is left out comes from the chart "
        "value pods.resources.merge; its memory is at least what the model needs by the preflight's estimate.",
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [REQUEST_RULE, *GPU_RULES]

    @model_validator(mode="after")
    def _check(self) -> "Resources":
        check_requests(self.requests, self.limits)
        names = {self.gpu_resource_name, *NAMES_OF_GPUS}
        amounts = (self.requests, self.limits)
        if messages := [
            rule["message"] for rule, given in zip(GPU_RULES, amounts, strict=True) if names & given.keys()
        ]:
            raise ValueError("; ".join(messages))
        return self

    @property
    def processes(self) -> int:
        """Return how many processes train together: one for each GPU, or one on the CPU."""
        return max(self.gpus_per_node, 1)


class PodTemplate(Model):
    """Where and how the pods of the job run.

    The operator refuses what the administrator's pod policy does not allow, such as access to the host.
    """

    labels: Labels = Field(default_factory=dict, description="Labels of the pods, in addition to the operator's own.")
    annotations: Annotations = Field(default_factory=dict, description="Annotations of the pods.")
    node_selector: Labels = Field(
        default_factory=dict, description="Labels that a node must have to run the trainer pod."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=MAX_ITEMS)] = Field(
        default_factory=list, description=f"Taints that the pods tolerate. {ALSO_PREFLIGHT}"
    )
    affinity: Affinity | None = Field(None, description="Nodes and pods near which the trainer pod runs.")
    topology_spread_constraints: (
        Annotated[list[TopologySpreadConstraint], KeyedBy("topologyKey", "whenUnsatisfiable")] | None
    ) = Field(None, description="How trainer pods are spread over topology domains, such as zones or nodes.")
    priority_class_name: Name | None = Field(None, description="PriorityClass of the trainer pod.")
    runtime_class_name: Name | None = Field(None, description="RuntimeClass of the trainer pod.")
    scheduler_name: Name | None = Field(None, description="Scheduler of the trainer pod. Unset: the cluster's.")
    service_account_name: Name | None = Field(
        None,
        description="Service account of the pods, for workload identity in place of keys. Unset: default. Others must "
        f"be in the chart value trainer.podPolicy.serviceAccountNames. {ALSO_PREFLIGHT}",
    )
    image: Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"^\S+$")] | None = Field(
        None, description="Trainer image. Unset: the operator's default."
    )
    command: Words | None = Field(
        None, description="Command of the trainer container, for an image of your own. Unset: the operator's trainer."
    )
    args: Words | None = Field(None, description="Arguments of the command.")
    image_pull_secrets: Annotated[list[SecretRef], KeyedBy("name")] = Field(
        default_factory=list, description=f"Secrets for pulling the images. {ALSO_PREFLIGHT}"
    )
    env: Annotated[list[EnvVar], KeyedBy("name", max_items=256)] = Field(
        default_factory=list,
        description=f"Additional environment variables, for example HTTPS_PROXY. Use a secretRef for credentials of "
        f"model, dataset and output. {ALSO_PREFLIGHT}",
    )
    env_from: Annotated[list[EnvFromSource], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description=f"ConfigMaps and Secrets of which each key is an environment variable. {ALSO_PREFLIGHT}"
    )
    volumes: Annotated[list[Volume], KeyedBy("name")] | None = Field(
        None, description=f"Additional volumes, for example a private CA or data. {ALSO_PREFLIGHT}"
    )
    volume_mounts: Annotated[list[VolumeMount], KeyedBy("mountPath")] | None = Field(
        None, description=f"Directories of the container in which the volumes are mounted. {ALSO_PREFLIGHT}"
    )
    security_context: PodSecurityContext | None = Field(
        None,
        description="User and groups of the pods. Unset: user and group 65532. {}: the cluster chooses, because "
        f"nothing is added to what is set here. {ALSO_PREFLIGHT}",
    )
    container_security_context: SecurityContext | None = Field(
        None, description="Privileges of the trainer container. Unset: none."
    )
    host_aliases: Annotated[list[HostAlias], KeyedBy("ip")] | None = Field(
        None, description=f"Entries of the pods' hosts file. {ALSO_PREFLIGHT}"
    )
    dns_policy: DnsPolicy | None = Field(None, description=f"Source of the pods' DNS settings. {ALSO_PREFLIGHT}")
    dns_config: DnsConfig | None = Field(None, description=f"Settings of the pods' resolver. {ALSO_PREFLIGHT}")
    host_network: bool | None = Field(
        None,
        description="Whether the trainer pod uses the node's network, if the chart value "
        "trainer.podPolicy.securityStandard is privileged.",
    )
    host_ipc: bool | None = Field(
        None,
        alias="hostIPC",
        description="Whether the trainer pod uses the node's shared memory, if the chart value "
        "trainer.podPolicy.securityStandard is privileged.",
    )
    host_pid: bool | None = Field(
        None,
        alias="hostPID",
        description="Whether the trainer pod sees the node's processes, if the chart value "
        "trainer.podPolicy.securityStandard is privileged.",
    )
    termination_grace_period_seconds: int = Field(
        120,
        description="Seconds that a pod has to save and upload a checkpoint after it was asked to stop.",
        ge=10,
        le=MAX_COUNT,
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {
            "rule": "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && "
            "self.volumes.exists(v, v.name == m.name))",
            "message": UNKNOWN_VOLUME,
            "fieldPath": ".volumeMounts",
        },
        {"rule": "!has(self.args) || has(self.command)", "message": ARGS_ALONE, "fieldPath": ".args"},
    ]

    @model_validator(mode="after")
    def _check(self) -> "PodTemplate":
        if self.args is not None and self.command is None:
            raise ValueError(ARGS_ALONE)
        names = {volume.name for volume in self.volumes or ()}
        if any(mount.name not in names for mount in self.volume_mounts or ()):
            raise ValueError(UNKNOWN_VOLUME)
        return self
