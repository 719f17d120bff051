"""``spec.resources`` and ``spec.podTemplate``: the trainer pod."""

from typing import Literal

from pydantic import Field

from finetune_api.base import Model, SecretRef
from finetune_api.limits import MAX_COUNT


class Resources(Model):
    """The resources that the trainer pod requests from the cluster."""

    gpus_per_node: int = Field(
        1,
        description="GPUs of the trainer pod. Each runs a process of its own with its own perDeviceBatchSize. 0: "
        "train on the CPU.",
        ge=0,
        le=16,
    )
    gpu_resource_name: str = Field(
        "nvidia.com/gpu",
        description="Extended resource that stands for a GPU.",
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
    )
    requests: dict[str, int | str] = Field(
        default_factory=dict, description="Requests of the trainer container, such as CPU and memory."
    )
    limits: dict[str, int | str] = Field(
        default_factory=dict, description="Limits of the trainer container, such as CPU and memory."
    )

    @property
    def processes(self) -> int:
        """Return how many processes train together: one per GPU, and one without a GPU."""
        return max(self.gpus_per_node, 1)


class Toleration(Model):
    """A pod's toleration, as in core/v1."""

    key: str | None = Field(None, description="Taint key. Unset, with operator Exists: all keys.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Relation of key and value.")
    value: str | None = Field(None, description="Taint value, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect. Unset: all effects."
    )
    toleration_seconds: int | None = Field(
        None, description="Seconds for which a NoExecute taint is tolerated.", le=MAX_COUNT
    )


class EnvVar(Model):
    """An environment variable with a plain value. Use a secretRef for credentials."""

    name: str = Field(description="Name of the variable.", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    value: str = Field("", description="Value of the variable.")


class PodTemplate(Model):
    """Where and how the trainer pod runs. No field gives it access to the host or removes its restrictions."""

    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels of the pods, in addition to the operator's own."
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations of the pods.")
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that a node must have to run the trainer pod."
    )
    tolerations: list[Toleration] = Field(default_factory=list, description="Taints that the trainer pod tolerates.")
    priority_class_name: str | None = Field(None, description="PriorityClass of the trainer pod.")
    runtime_class_name: str | None = Field(None, description="RuntimeClass of the trainer pod.")
    image: str | None = Field(None, description="Trainer image. Unset: the operator's default.")
    image_pull_secrets: list[SecretRef] = Field(default_factory=list, description="Secrets for pulling the images.")
    env: list[EnvVar] = Field(
        default_factory=list, description="Additional environment variables of the trainer container."
    )
    termination_grace_period_seconds: int = Field(
        120,
        description="Seconds in which a pod that is asked to stop can save and upload a checkpoint.",
        ge=10,
        le=MAX_COUNT,
    )
