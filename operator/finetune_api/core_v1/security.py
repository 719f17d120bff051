"""Define the security contexts of pod and container."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Model
from finetune_api.core_v1.lists import MAX_ITEMS, Strings, Text
from finetune_api.limits import MAX_COUNT

Id = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Profile(Model):
    """A seccomp or AppArmor profile."""

    type: Literal["RuntimeDefault", "Localhost", "Unconfined"] = Field(description="Kind of profile.")
    localhost_profile: Text | None = Field(None, description="Profile on the node, with type Localhost.")


class SeLinuxOptions(Model):
    """The SELinux context."""

    level: Text | None = Field(None, description="Level.")
    role: Text | None = Field(None, description="Role.")
    type: Text | None = Field(None, description="Type.")
    user: Text | None = Field(None, description="User.")


class PodSecurityContext(Model):
    """The user of the pod. What is unset here is unset in the pod, for the cluster to assign."""

    run_as_user: Id | None = Field(
        None, description="UID. Unset: assigned by the cluster, as OpenShift does, or else the image's."
    )
    run_as_group: Id | None = Field(None, description="GID. Unset: assigned by the cluster, or else the image's.")
    run_as_non_root: bool | None = Field(None, description="Whether the kubelet refuses to run as root. Unset: true.")
    fs_group: Id | None = Field(None, description="Group that owns the volumes. Unset: none, or assigned.")
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = Field(
        None, description="When the group of a volume's files is set."
    )
    supplemental_groups: Annotated[list[Id], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="Further groups of the user."
    )
    seccomp_profile: Profile | None = Field(None, description="Seccomp profile. Unset: RuntimeDefault.")
    app_armor_profile: Profile | None = Field(None, description="AppArmor profile. Unset: the node's default.")
    se_linux_options: SeLinuxOptions | None = Field(None, description="SELinux context. Unset: the node's default.")


class Capabilities(Model):
    """Linux capabilities of the container."""

    add: Strings | None = Field(None, description="Capabilities to add.")
    drop: Strings | None = Field(None, description="Capabilities to drop. Unset: ALL.")


class SecurityContext(Model):
    """The privileges of the trainer container."""

    read_only_root_filesystem: bool | None = Field(
        None, description="Whether the image's files are read-only. Unset: true."
    )
    allow_privilege_escalation: bool | None = Field(
        None, description="Whether a process may gain more privileges than its parent. Unset: false."
    )
    privileged: bool | None = Field(None, description="Whether the container may do what root on the node may.")
    capabilities: Capabilities | None = Field(None, description="Linux capabilities. Unset: none.")
