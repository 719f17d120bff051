"""Decide whether a FineTuneJob may have the pods that its ``spec.podTemplate`` asks for.

A user who may create FineTuneJobs but no pods must not exceed what the cluster allows. The levels are those of
Kubernetes' Pod Security Standards, and each field is at the level at which the standards allow it.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Literal, get_args

from finetune_api.core_v1.security import PodSecurityContext, SecurityContext
from finetune_api.core_v1.volumes import Volume
from finetune_api.finetunejob import ModelCache, PodTemplate
from finetune_operator.settings import SecurityStandard, Settings

LEVELS: tuple[SecurityStandard, ...] = get_args(SecurityStandard)
DEFAULT_ACCOUNT = "default"
APP_ARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
RESTRICTED_CAPABILITIES = {"NET_BIND_SERVICE"}
BASELINE_CAPABILITIES = RESTRICTED_CAPABILITIES | {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "SETFCAP", "SETGID", "SETPCAP",
    "SETUID", "SYS_CHROOT",
}  # fmt: skip
BASELINE_SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
Request = tuple[str, object, Literal["baseline", "privileged"]]
"""Path below ``podTemplate``, the value found there, and the lowest level at which it is allowed."""


def list_refusals(template: PodTemplate, settings: Settings) -> list[str]:
    """List what is refused, one sentence each: the field, what was found, and how to correct it."""
    return [
        *_refuse_privileges(template, settings),
        *_refuse_host_paths(template, settings),
        *_refuse_account(template, settings),
    ]


def list_cache_refusals(cache: ModelCache | None, settings: Settings) -> list[str]:
    """List what is refused of ``spec.model.cache``: a path of the node that is not allowed."""
    path = cache.host_path.path if cache and cache.host_path else None
    if path is None or _is_below(path, settings.pod_host_paths):
        return []
    return [
        f"spec.model.cache.hostPath: found {path}, and the node's paths are not allowed: use persistentVolumeClaim, or "
        "ask the administrator to add the path to the chart value trainer.podPolicy.hostPaths"
    ]


def _refuse_privileges(template: PodTemplate, settings: Settings) -> Iterator[str]:
    allowed = settings.pod_security_standard
    for field, value, level in _list_privileges(template):
        if LEVELS.index(level) > LEVELS.index(allowed):
            yield (
                f"spec.podTemplate.{field}: found {_show(value)}, which the Pod Security Standard {allowed} does not "
                "allow: remove it, or ask the administrator to set the chart value "
                f"trainer.podPolicy.securityStandard={level}"
            )


def _refuse_host_paths(template: PodTemplate, settings: Settings) -> Iterator[str]:
    for number, volume in enumerate(template.volumes or ()):
        if volume.host_path is not None and not _is_below(volume.host_path.path, settings.pod_host_paths):
            yield (
                f"spec.podTemplate.volumes[{number}].hostPath: found {volume.host_path.path}, and the node's paths "
                "are not allowed: use a persistentVolumeClaim, or ask the administrator to add the path to the chart "
                "value trainer.podPolicy.hostPaths"
            )


def _refuse_account(template: PodTemplate, settings: Settings) -> Iterator[str]:
    name = template.service_account_name
    allowed = (DEFAULT_ACCOUNT, *settings.pod_service_accounts)
    if name is not None and not any(fnmatchcase(name, pattern) for pattern in allowed):
        yield (
            f"spec.podTemplate.serviceAccountName: found {name}, allowed: {', '.join(allowed)}: choose one of these, "
            "or ask the administrator to add the name to the chart value trainer.podPolicy.serviceAccountNames"
        )


def _list_privileges(template: PodTemplate) -> Iterator[Request]:
    for field, value in (
        ("hostNetwork", template.host_network),
        ("hostIPC", template.host_ipc),
        ("hostPID", template.host_pid),
    ):
        if value:
            yield field, value, "privileged"
    if template.security_context is not None:
        yield from _list_pod_privileges(template.security_context)
    if template.container_security_context is not None:
        yield from _list_container_privileges(template.container_security_context)
    for number, volume in enumerate(template.volumes or ()):
        yield from _list_volume_privileges(number, volume)
    for key, text in template.annotations.items():
        if key.startswith(APP_ARMOR_ANNOTATION) and text == "unconfined":
            yield f"annotations[{key}]", text, "privileged"


def _list_pod_privileges(context: PodSecurityContext) -> Iterator[Request]:
    if context.run_as_user == 0:
        yield "securityContext.runAsUser", 0, "baseline"
    if context.run_as_non_root is False:
        yield "securityContext.runAsNonRoot", False, "baseline"
    for field, profile in (
        ("seccompProfile", context.seccomp_profile),
        ("appArmorProfile", context.app_armor_profile),
    ):
        if profile is not None and profile.type == "Unconfined":
            yield f"securityContext.{field}.type", profile.type, "privileged"
    options = context.se_linux_options
    if options is not None:
        if options.type not in BASELINE_SELINUX_TYPES:
            yield "securityContext.seLinuxOptions.type", options.type, "privileged"
        for field, value in (("user", options.user), ("role", options.role)):
            if value:
                yield f"securityContext.seLinuxOptions.{field}", value, "privileged"


def _list_container_privileges(context: SecurityContext) -> Iterator[Request]:
    field = "containerSecurityContext"
    if context.privileged:
        yield f"{field}.privileged", True, "privileged"
    if context.allow_privilege_escalation:
        yield f"{field}.allowPrivilegeEscalation", True, "baseline"
    capabilities = context.capabilities
    if capabilities is None:
        return
    for name in capabilities.add or ():
        if name not in RESTRICTED_CAPABILITIES:
            yield f"{field}.capabilities.add", name, "baseline" if name in BASELINE_CAPABILITIES else "privileged"
    if capabilities.drop is not None and "ALL" not in capabilities.drop:
        yield f"{field}.capabilities.drop", capabilities.drop, "baseline"


def _list_volume_privileges(number: int, volume: Volume) -> Iterator[Request]:
    if volume.nfs is not None:
        yield f"volumes[{number}].nfs", f"{volume.nfs.server}:{volume.nfs.path}", "baseline"


def _is_below(path: str, directories: tuple[str, ...]) -> bool:
    return any(f"{path}/".startswith(f"{directory.rstrip('/')}/") for directory in directories)


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
