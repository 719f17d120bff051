"""What every container of ours may do, which is next to nothing, and the token with which it reports."""

from typing import Any

from finetune_api.messages import REPORT_AUDIENCE, TOKEN_FILE

USER = 65532
TOKEN_VOLUME = "finetune-token"  # noqa: S105 -- a volume's name
TOKEN_SECONDS = 3600


def container_security_context() -> dict[str, Any]:
    """Meets the restricted Pod Security Standard on its own, also in a pod whose own context says nothing."""
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
    """For pods that are wholly ours: ``fsGroup`` lets the user read projected files and write volumes."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def token_volume() -> dict[str, Any]:
    """The projected service-account token: only the operator's report endpoint accepts it."""
    source = {"audience": REPORT_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE.rpartition("/")[2]}
    return {"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": source}]}}


def token_mount() -> dict[str, Any]:
    """Where it lies in the container."""
    return {"name": TOKEN_VOLUME, "mountPath": TOKEN_FILE.rpartition("/")[0], "readOnly": True}
