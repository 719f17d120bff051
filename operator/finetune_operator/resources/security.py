"""Build the security contexts of our pods, and the volume of the token with which they report."""

from typing import Any

from finetune_api.core_v1.security import PodSecurityContext, SecurityContext
from finetune_api.messages import REPORT_AUDIENCE, TOKEN_FILE

USER = 65532
TOKEN_VOLUME = "finetune-token"  # noqa: S105 -- a volume's name
TOKEN_SECONDS = 3600
CONFINED = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def agent_security_context(fixed_user: bool) -> dict[str, Any]:
    """Build the context of our container in a user's pod. It meets the Pod Security Standard restricted by itself."""
    user = {"runAsUser": USER, "runAsGroup": USER} if fixed_user else {}
    return {**CONFINED, **user, **container_security_context()}


def container_security_context(requested: SecurityContext | None = None) -> dict[str, Any]:
    """Build the context of a container in a pod of ours. Fields that are not requested are as strict as possible."""
    own = requested.to_json() if requested else {}
    context = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        **own,
        "capabilities": {"drop": ["ALL"], **own.get("capabilities", {})},
    }
    if own.get("privileged") and "allowPrivilegeEscalation" not in own:
        del context["allowPrivilegeEscalation"]  # the API server refuses both together
    return context


def pod_security_context(requested: PodSecurityContext | None = None) -> dict[str, Any]:
    """Build the security context of a pod of ours.

    ``fsGroup`` lets its user read projected files and write volumes. If a user requests a context, it replaces user and
    groups together: the cluster assigns those that it leaves out.
    """
    if requested is not None:
        return CONFINED | requested.to_json()
    return {
        **CONFINED,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
    }


def token_volume() -> dict[str, Any]:
    """Build the volume of the service-account token that only the operator's server accepts."""
    source = {"audience": REPORT_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE.rpartition("/")[2]}
    return {"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": source}]}}


def token_mount() -> dict[str, Any]:
    """Build the mount of the token's volume."""
    return {"name": TOKEN_VOLUME, "mountPath": TOKEN_FILE.rpartition("/")[0], "readOnly": True}
