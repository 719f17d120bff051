"""Build the security contexts of our pods, and the token with which they report."""

from typing import Any

from finetune_api.messages import REPORT_AUDIENCE, TOKEN_FILE

USER = 65532
TOKEN_VOLUME = "finetune-token"  # noqa: S105 -- a volume's name
TOKEN_SECONDS = 3600


def container_security_context() -> dict[str, Any]:
    """Build the context of a container; it alone meets the restricted Pod Security Standard."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_security_context() -> dict[str, Any]:
    """Build the security context of a pod of ours.

    ``fsGroup`` lets its user read projected files and write volumes.
    """
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def token_volume() -> dict[str, Any]:
    """Build the volume of the service-account token that only the operator's server accepts."""
    source = {"audience": REPORT_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE.rpartition("/")[2]}
    return {"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": source}]}}


def token_mount() -> dict[str, Any]:
    """Build the mount of the token's volume."""
    return {"name": TOKEN_VOLUME, "mountPath": TOKEN_FILE.rpartition("/")[0], "readOnly": True}
