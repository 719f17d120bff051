"""Run ``finetune rollback``: let the pods serve an older version, whatever the spec asks for, or follow the spec again.

It writes an annotation. The spec stays as Git has it, and the operator follows the annotation into the status.
"""

import json
import sys
from collections.abc import Sequence

from finetune_api.adapterdeployment import (
    ROLLBACK_ANNOTATION,
    AdapterDeploymentStatus,
    AdapterVersion,
    HistoryEntry,
    RollbackRequest,
    find_last_good,
    list_deployed,
    read_request,
)
from finetune_api.lenient import read_known
from finetune_api.reasons import Reason
from finetune_cli.cluster import Cluster, Object, collection_path
from finetune_cli.errors import CliError

KIND = "AdapterDeployment"
SHORT_DIGEST = 19
"""Characters of a digest that tell versions apart: sha256: and twelve digits."""


def roll_back(cluster: Cluster, name: str, to: str | None) -> None:
    """Ask for an older version: ``to`` is the beginning of its digest; None: the last good one. Raises CliError."""
    resource = cluster.one(KIND, name)
    status = _read_status(resource)
    asked = _find_asked(resource, status)
    history = list_deployed(status.history)
    target = find_last_good(status.history, asked.digest) if to is None else _choose(to, history, asked)
    if target is None:
        raise CliError(
            f"{_title(resource)}: there is nothing to roll back to: status.history has no version but "
            f"{_shorten(asked.digest)} that every pod served and that was not rolled back"
        )
    if (status.rollback is not None and status.desired is not None) and status.desired.digest == target.digest:
        _say(resource, f"is rolled back to {_shorten(target.digest)} already")
        return
    _annotate(cluster, resource, RollbackRequest(from_digest=asked.digest, to=target.digest))
    _say(
        resource,
        f"goes back from {_shorten(asked.digest)} to {_shorten(target.digest)}. Its spec stays as it is; to follow it "
        f"again: finetune rollback {resource['metadata']['name']} --undo",
    )


def undo(cluster: Cluster, name: str) -> None:
    """Let the pods serve what the spec asks for again. Raises CliError."""
    resource = cluster.one(KIND, name)
    rollback = _read_status(resource).rollback
    if rollback is None and not _has_request(resource):
        _say(resource, "is not rolled back: it follows its spec")
        return
    is_automatic = rollback is not None and rollback.reason != Reason.ROLLBACK_REQUESTED
    _annotate(cluster, resource, RollbackRequest(undone=rollback.at) if rollback is not None and is_automatic else None)
    _say(resource, "follows its spec again")


def _read_status(resource: Object) -> AdapterDeploymentStatus:
    return read_known(AdapterDeploymentStatus, resource.get("status") or {})[0]


def _find_asked(resource: Object, status: AdapterDeploymentStatus) -> AdapterVersion:
    """Find the version that the spec asks for. Raises CliError if no pod could go back from it now."""
    if status.desired is None:
        raise CliError(f"{_title(resource)}: the pods serve no version yet, so there is nothing to roll back from")
    if status.observed_generation != resource["metadata"].get("generation"):
        raise CliError(f"{_title(resource)}: the operator has not seen its newest spec yet: try again in a moment")
    if resource["spec"].get("suspend"):
        raise CliError(f"{_title(resource)} is suspended, so no pod would move: set spec.suspend to false first")
    return status.rollback.from_version if status.rollback is not None else status.desired


def _choose(to: str, history: Sequence[HistoryEntry], asked: AdapterVersion) -> HistoryEntry:
    """Choose the only version whose digest begins so, with or without its algorithm. Raises CliError."""
    prefix = f"sha256:{to.removeprefix('sha256:')}"
    found = [entry for entry in history if entry.digest.startswith(prefix)]
    if len(found) > 1:
        names = ", ".join(_shorten(entry.digest) for entry in found)
        raise CliError(f"--to {to} is ambiguous: {names}; write more digits")
    if asked.digest.startswith(prefix) and len(prefix) > len("sha256:"):
        raise CliError(f"--to {to} is the version that the spec asks for: to serve it, use --undo")
    if not found:
        others = [_shorten(entry.digest) for entry in history if entry.digest != asked.digest]
        raise CliError(
            f"--to {to}: status.history has no such version that every pod served; it has {', '.join(others) or 'none'}"
        )
    return found[0]


def _has_request(resource: Object) -> bool:
    try:
        return read_request(resource["metadata"]).to is not None
    except ValueError:
        return True


def _annotate(cluster: Cluster, resource: Object, request: RollbackRequest | None) -> None:
    path = f"{collection_path(KIND, cluster.namespace)}/{resource['metadata']['name']}"
    value = json.dumps(request.to_json()) if request is not None else None
    cluster.patch(path, {"metadata": {"annotations": {ROLLBACK_ANNOTATION: value}}})


def _title(resource: Object) -> str:
    return f"{KIND} {resource['metadata']['name']}"


def _shorten(digest: str) -> str:
    return digest[:SHORT_DIGEST]


def _say(resource: Object, text: str) -> None:
    sys.stdout.write(f"{_title(resource)} {text}\n")
