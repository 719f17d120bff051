"""Build the volumes of a FineTuneJob's pods.

They are scratch space, the token, and the Secrets, ConfigMaps and claims in the spec.
"""

from collections.abc import Iterable
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.messages import SECRETS_DIRECTORY
from finetune_api.uris import ConfigMapUri, PvcUri, parse_uri
from finetune_operator.resources.security import token_mount, token_volume

CONFIG_MAPS_DIRECTORY = "/etc/finetune/configmaps"
CLAIMS_DIRECTORY = "/etc/finetune/claims"
MODEL_CACHE_DIRECTORY = "/etc/finetune/model-cache"
Volumes = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Volumes of the pod, and their mounts in the container."""


def build_volumes(spec: FineTuneJobSpec) -> Volumes:
    """Build the volumes of preflight and trainer, and their mounts."""
    extra = (spec.dataset.validation, spec.evaluation.forgetting)
    sources = [spec.model.uri, spec.dataset.uri, *(source.uri for source in extra if source and source.uri)]
    return _build([*_build_secret_volumes(_list_secrets(spec)), *_build_source_volumes(sources)])


def build_merge_volumes(spec: FineTuneJobSpec) -> Volumes:
    """Build the volumes of a merge, and their mounts, without the dataset, which may be gone by then."""
    references = (spec.model.secret_ref, spec.output.secret_ref)
    secrets = _build_secret_volumes(reference.name for reference in references if reference)
    return _build([*secrets, *_build_source_volumes([spec.model.uri])])


def build_output_volumes(spec: FineTuneJobSpec) -> Volumes:
    """Build the volumes of a clean-up, and their mounts, without model and dataset, which may be gone."""
    reference = spec.output.secret_ref
    return _build(_build_secret_volumes([reference.name] if reference else []))


def _build(pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> Volumes:
    """Add scratch space and token to the volumes and mounts."""
    pairs = list(pairs)
    return (
        [{"name": "finetune-tmp", "emptyDir": {}}, token_volume(), *(volume for volume, _ in pairs)],
        [{"name": "finetune-tmp", "mountPath": "/tmp"}, token_mount(), *(mount for _, mount in pairs)],  # noqa: S108 -- in a pod
    )


def build_model_cache(spec: FineTuneJobSpec, *, read_only: bool) -> Volumes:
    """Build the volume of ``spec.model.cache``. The preflight fills it, the others only read it.

    Only the mount is read-only: a preflight on the same node could not write to a volume that is read-only there.
    """
    cache = spec.model.cache
    if cache is None:
        return [], []
    if cache.host_path is not None:
        source = {"hostPath": {"path": cache.host_path.path, "type": "Directory"}}
    else:
        assert cache.persistent_volume_claim is not None, "a cache has one of the two"  # noqa: S101
        source = {"persistentVolumeClaim": {"claimName": cache.persistent_volume_claim.claim_name}}
    mount = {"name": "finetune-model-cache", "mountPath": MODEL_CACHE_DIRECTORY}
    return [{"name": "finetune-model-cache", **source}], [{**mount, **({"readOnly": True} if read_only else {})}]


def build_shared_memory(spec: FineTuneJobSpec) -> Volumes:
    """Build ``/dev/shm`` for several processes.

    NCCL exchanges gradients there, and by default it has only 64 MiB.
    """
    if spec.resources.processes == 1:
        return [], []
    return (
        [{"name": "finetune-shared-memory", "emptyDir": {"medium": "Memory"}}],
        [{"name": "finetune-shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108 -- in a pod
    )


def _build_secret_volumes(names: Iterable[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Build a volume and its mount for each Secret.

    The volume is optional, so that the preflight can report a missing Secret.
    """
    return [
        (
            {"name": f"finetune-secret-{number}", "secret": {"secretName": name, "optional": True}},
            {"name": f"finetune-secret-{number}", "mountPath": f"{SECRETS_DIRECTORY}/{name}", "readOnly": True},
        )
        for number, name in enumerate(sorted(set(names)))
    ]


def _list_secrets(spec: FineTuneJobSpec) -> list[str]:
    hub, mlflow, wandb = spec.output.hub, spec.tracking.mlflow, spec.tracking.wandb
    adapter = spec.model.adapter
    references = (
        spec.model.secret_ref,
        spec.dataset.secret_ref,
        spec.output.secret_ref,
        *(service.secret_ref for service in (hub, mlflow, wandb) if service),
        adapter.secret_ref if adapter else None,
    )
    return [reference.name for reference in references if reference is not None]


def _build_source_volumes(uris: Iterable[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    addresses = [parse_uri(uri) for uri in uris]
    config_maps = sorted({uri.name for uri in addresses if isinstance(uri, ConfigMapUri)})
    claims = sorted({uri.claim for uri in addresses if isinstance(uri, PvcUri)})
    return [
        (
            {"name": f"finetune-configmap-{number}", "configMap": {"name": name, "optional": True}},
            {"name": f"finetune-configmap-{number}", "mountPath": f"{CONFIG_MAPS_DIRECTORY}/{name}", "readOnly": True},
        )
        for number, name in enumerate(config_maps)
    ] + [
        (
            {"name": f"finetune-claim-{number}", "persistentVolumeClaim": {"claimName": name, "readOnly": True}},
            {"name": f"finetune-claim-{number}", "mountPath": f"{CLAIMS_DIRECTORY}/{name}", "readOnly": True},
        )
        for number, name in enumerate(claims)
    ]
