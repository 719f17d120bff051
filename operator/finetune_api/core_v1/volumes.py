"""Define the volumes of a pod, and their mounts in a container."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from finetune_api.base import Model
from finetune_api.core_v1.environment import KeyName, ObjectFieldSelector, ResourceFieldSelector
from finetune_api.core_v1.lists import (
    MAX_ITEMS,
    Annotations,
    Labels,
    Name,
    Text,
    check_choice,
    exactly_one,
)
from finetune_api.core_v1.quantity import Quantities, Quantity
from finetune_api.core_v1.selectors import LabelSelector
from finetune_api.limits import MAX_COUNT

Mode = Annotated[int, Field(ge=0, le=0o777)]
RelativePath = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^/].*$")]
AbsolutePath = Annotated[str, Field(max_length=1024, pattern=r"^(/\.*[^/:.][^/:]*)+$")]
"""A path without empty parts, ``.`` and ``..``, and without a slash at its end."""
VolumeName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
OUR_VOLUMES = "finetune-"
OUR_DIRECTORIES = ("/etc/finetune", "/var/run/secrets/finetune-operator.io")
"""Directories of our own mounts, in which nothing else may be mounted."""


class KeyToPath(Model):
    """A key as a file."""

    key: KeyName = Field(description="Key of the ConfigMap or Secret.")
    path: RelativePath = Field(description="Path of the file below the mount.")
    mode: Mode | None = Field(None, description="Mode of the file, as a decimal number.")


Items = Annotated[list[KeyToPath], Field(max_length=MAX_ITEMS)]


class ConfigMapVolume(Model):
    """Files from a ConfigMap."""

    name: Name = Field(description="Name of the ConfigMap, in the job's namespace.")
    items: Items | None = Field(None, description="Keys to mount. Unset: all.")
    default_mode: Mode | None = Field(None, description="Mode of the files, as a decimal number.")
    optional: bool | None = Field(None, description="Whether the pod may start without it.")


class SecretVolume(Model):
    """Files from a Secret."""

    secret_name: Name = Field(description="Name of the Secret, in the job's namespace.")
    items: Items | None = Field(None, description="Keys to mount. Unset: all.")
    default_mode: Mode | None = Field(None, description="Mode of the files, as a decimal number.")
    optional: bool | None = Field(None, description="Whether the pod may start without it.")


class ClaimVolume(Model):
    """A PersistentVolumeClaim."""

    claim_name: Name = Field(description="Name of the claim, in the job's namespace.")
    read_only: bool | None = Field(None, description="Whether it is mounted read-only.")


class EmptyDirVolume(Model):
    """An empty directory that lives as long as the pod."""

    medium: Literal["", "Memory"] | None = Field(None, description="Memory: in RAM. Unset: on the node's disk.")
    size_limit: Quantity | None = Field(None, description="Maximum size.")


class DownwardFile(Model):
    """A field of the pod as a file."""

    path: RelativePath = Field(description="Path of the file below the mount.")
    field_ref: ObjectFieldSelector | None = Field(None, description="Field of the pod.")
    resource_field_ref: ResourceFieldSelector | None = Field(None, description="Resource of a container.")
    mode: Mode | None = Field(None, description="Mode of the file, as a decimal number.")


DownwardFiles = Annotated[list[DownwardFile], Field(max_length=MAX_ITEMS)]


class DownwardVolume(Model):
    """Fields of the pod as files."""

    items: DownwardFiles = Field(description="Files.")
    default_mode: Mode | None = Field(None, description="Mode of the files, as a decimal number.")


class ProjectedConfigMap(Model):
    """Files from a ConfigMap, in a projected volume."""

    name: Name = Field(description="Name of the ConfigMap, in the job's namespace.")
    items: Items | None = Field(None, description="Keys to mount. Unset: all.")
    optional: bool | None = Field(None, description="Whether the pod may start without it.")


class ProjectedSecret(Model):
    """Files from a Secret, in a projected volume."""

    name: Name = Field(description="Name of the Secret, in the job's namespace.")
    items: Items | None = Field(None, description="Keys to mount. Unset: all.")
    optional: bool | None = Field(None, description="Whether the pod may start without it.")


class ProjectedDownward(Model):
    """Fields of the pod as files, in a projected volume."""

    items: DownwardFiles = Field(description="Files.")


class ProjectedToken(Model):
    """A token of the pod's service account."""

    path: RelativePath = Field(description="Path of the file below the mount.")
    audience: Text | None = Field(None, description="Who may accept the token. Unset: the API server.")
    expiration_seconds: int | None = Field(
        None, description="Seconds for which the token is valid.", ge=600, le=MAX_COUNT
    )


class VolumeProjection(Model):
    """One source of a projected volume: exactly one of its fields."""

    config_map: ProjectedConfigMap | None = Field(None, description="ConfigMap.")
    secret: ProjectedSecret | None = Field(None, description="Secret.")
    downward_api: ProjectedDownward | None = Field(None, alias="downwardAPI", description="Fields of the pod.")
    service_account_token: ProjectedToken | None = Field(None, description="Token of the service account.")

    cel_rules: ClassVar[list[dict[str, str]]] = [
        exactly_one("configMap", "secret", "downwardAPI", "serviceAccountToken")
    ]

    @model_validator(mode="after")
    def _check_choice(self) -> "VolumeProjection":
        check_choice(self, self.cel_rules[0])
        return self


class ProjectedVolume(Model):
    """Several sources in one directory."""

    sources: Annotated[list[VolumeProjection], Field(max_length=MAX_ITEMS)] = Field(description="Sources.")
    default_mode: Mode | None = Field(None, description="Mode of the files, as a decimal number.")


class CsiSecretRef(Model):
    """A Secret for a CSI driver."""

    name: Name = Field(description="Name of the Secret, in the job's namespace.")


class CsiVolume(Model):
    """A volume of a CSI driver that lives as long as the pod, for example of the Secrets Store."""

    driver: Text = Field(description="Name of the driver.")
    read_only: bool | None = Field(None, description="Whether it is mounted read-only.")
    fs_type: Text | None = Field(None, description="File system.")
    volume_attributes: Annotated[dict[str, Text], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="Settings for the driver."
    )
    node_publish_secret_ref: CsiSecretRef | None = Field(None, description="Secret that the driver gets.")


class ClaimResources(Model):
    """The size of a claim."""

    requests: Quantities | None = Field(None, description="Minimum size (storage).")
    limits: Quantities | None = Field(None, description="Maximum size (storage).")


class ClaimSpec(Model):
    """A claim that is made for the pod."""

    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]],
        Field(min_length=1, max_length=4),
    ] = Field(description="How the volume can be mounted.")
    resources: ClaimResources = Field(description="Size of the volume.")
    storage_class_name: Text | None = Field(None, description="StorageClass. Unset: the cluster's default.")
    volume_mode: Literal["Filesystem"] | None = Field(None, description="Kind of volume.")
    volume_name: Text | None = Field(None, description="PersistentVolume to bind to.")
    selector: LabelSelector | None = Field(None, description="PersistentVolumes to choose from.")


class ClaimMetadata(Model):
    """Labels and annotations of a claim."""

    labels: Labels | None = Field(None, description="Labels.")
    annotations: Annotations | None = Field(None, description="Annotations.")


class ClaimTemplate(Model):
    """The claim that is made for the pod."""

    metadata: ClaimMetadata | None = Field(None, description="Labels and annotations.")
    spec: ClaimSpec = Field(description="Size and class.")


class EphemeralVolume(Model):
    """A claim that is made with the pod and deleted with it."""

    volume_claim_template: ClaimTemplate = Field(description="The claim.")


class NfsVolume(Model):
    """A directory of an NFS server."""

    server: Text = Field(description="Name or address of the server.")
    path: AbsolutePath = Field(description="Directory that the server exports.")
    read_only: bool | None = Field(None, description="Whether it is mounted read-only.")


class HostPathVolume(Model):
    """A directory or file of the node."""

    path: AbsolutePath = Field(description="Path on the node.")
    type: (
        Literal["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"]
        | None
    ) = Field(
        None, description="Kind of file that must exist at the path; with …OrCreate it is created. Unset: not checked."
    )


RESERVED_VOLUME = "names that begin with finetune- belong to the operator's own volumes: choose another name"
ONE_SOURCE = exactly_one(
    "configMap", "secret", "persistentVolumeClaim", "emptyDir", "projected", "downwardAPI", "csi", "ephemeral", "nfs",
    "hostPath",
)  # fmt: skip


class Volume(Model):
    """A volume: its name, and exactly one source."""

    name: VolumeName = Field(description="Name of the volume.")
    config_map: ConfigMapVolume | None = Field(None, description="Files from a ConfigMap.")
    secret: SecretVolume | None = Field(None, description="Files from a Secret.")
    persistent_volume_claim: ClaimVolume | None = Field(None, description="A PersistentVolumeClaim.")
    empty_dir: EmptyDirVolume | None = Field(None, description="An empty directory.")
    projected: ProjectedVolume | None = Field(None, description="Several sources in one directory.")
    downward_api: DownwardVolume | None = Field(None, alias="downwardAPI", description="Fields of the pod as files.")
    csi: CsiVolume | None = Field(None, description="A volume of a CSI driver.")
    ephemeral: EphemeralVolume | None = Field(None, description="A claim that lives as long as the pod.")
    nfs: NfsVolume | None = Field(
        None,
        description="A directory of an NFS server, if the chart value trainer.podPolicy.securityStandard is not "
        "restricted.",
    )
    host_path: HostPathVolume | None = Field(
        None, description="A path of the node, if the chart value trainer.podPolicy.hostPaths allows it."
    )

    cel_rules: ClassVar[list[dict[str, str]]] = [
        ONE_SOURCE,
        {"rule": f"!self.name.startsWith('{OUR_VOLUMES}')", "message": RESERVED_VOLUME, "fieldPath": ".name"},
    ]

    @model_validator(mode="after")
    def _check(self) -> "Volume":
        check_choice(self, ONE_SOURCE)
        if self.name.startswith(OUR_VOLUMES):
            raise ValueError(RESERVED_VOLUME)
        return self


RESERVED_MOUNT = (
    "/etc/finetune and /var/run/secrets/finetune-operator.io have the operator's own mounts: choose another directory"
)
_WITHIN = [
    rule
    for path in OUR_DIRECTORIES
    for rule in (f"self.mountPath == '{path}'", f"self.mountPath.startsWith('{path}/')")
]


class VolumeMount(Model):
    """A volume in the container."""

    name: VolumeName = Field(description="Name of the volume.")
    mount_path: AbsolutePath = Field(
        description="Directory in the container. /tmp and /dev/shm replace the operator's own."
    )
    read_only: bool | None = Field(None, description="Whether the container can only read it.")
    sub_path: RelativePath | None = Field(None, description="Path in the volume. Unset: the whole volume.")

    cel_rules: ClassVar[list[dict[str, str]]] = [
        {"rule": f"!({' || '.join(_WITHIN)})", "message": RESERVED_MOUNT, "fieldPath": ".mountPath"}
    ]

    @model_validator(mode="after")
    def _check(self) -> "VolumeMount":
        if any(f"{self.mount_path}/".startswith(f"{path}/") for path in OUR_DIRECTORIES):
            raise ValueError(RESERVED_MOUNT)
        return self
