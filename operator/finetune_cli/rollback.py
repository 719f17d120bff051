"""Run ``finetune rollback``: let the pods serve an older version, or the spec's again.

It writes an annotation that the operator follows. The spec stays as it is in Git.
"""

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
from finetune_api.reasons import Reason
from finetune_api.version_paths import shorten
from finetune_cli.annotations import KIND, annotate, print_message, read_status, title
from finetune_cli.cluster import Cluster, Object
from finetune_cli.errors import CliError


def roll_back(cluster: Cluster, name: str, to: str | None) -> None:
    """Ask for an older version.

    Args:
        cluster: The cluster.
        name: Name of the AdapterDeployment.
        to: Beginning of the version's digest. None: the last good version.

    Raises:
        CliError: There is no such version, or the pods cannot go back now.
    """
    resource = cluster.find_one(KIND, name)
    status = read_status(resource)
    requested = _find_requested(resource, status)
    history = list_deployed(status.history)
    target = find_last_good(status.history, requested.digest) if to is None else _choose(to, history, requested)
    if target is None:
        raise CliError(
            f"{title(resource)}: there is nothing to roll back to: status.history has no version but "
            f"{shorten(requested.digest)} that every pod served and that was not rolled back"
        )
    if (status.rollback is not None and status.desired is not None) and status.desired.digest == target.digest:
        print_message(resource, f"is rolled back to {shorten(target.digest)} already")
        return
    annotate(cluster, resource, ROLLBACK_ANNOTATION, RollbackRequest(from_digest=requested.digest, to=target.digest))
    print_message(
        resource,
        f"goes back from {shorten(requested.digest)} to {shorten(target.digest)}. Its spec stays; to follow it "
        f"again: finetune rollback {resource['metadata']['name']} --undo",
    )


def undo(cluster: Cluster, name: str) -> None:
    """Let the pods serve what the spec asks for again. Raises CliError."""
    resource = cluster.find_one(KIND, name)
    rollback = read_status(resource).rollback
    if rollback is None and not _has_request(resource):
        print_message(resource, "is not rolled back: it follows its spec")
        return
    is_automatic = rollback is not None and rollback.reason != Reason.ROLLBACK_REQUESTED
    annotate(
        cluster,
        resource,
        ROLLBACK_ANNOTATION,
        RollbackRequest(undone=rollback.at) if rollback is not None and is_automatic else None,
    )
    print_message(resource, "follows its spec again")


def _find_requested(resource: Object, status: AdapterDeploymentStatus) -> AdapterVersion:
    """Find the version that the spec asks for. Raises CliError if no pod could go back from it now."""
    if status.desired is None:
        raise CliError(f"{title(resource)}: the pods serve no version yet, so there is nothing to roll back from")
    if status.observed_generation != resource["metadata"].get("generation"):
        raise CliError(f"{title(resource)}: the operator has not seen its newest spec yet: try again in a moment")
    if resource["spec"].get("suspend"):
        raise CliError(f"{title(resource)} is suspended, so no pod would move: set spec.suspend to false first")
    return status.rollback.from_version if status.rollback is not None else status.desired


def _choose(to: str, history: Sequence[HistoryEntry], requested: AdapterVersion) -> HistoryEntry:
    """Choose the only version whose digest begins with ``to``. Raises CliError if there is none, or several."""
    prefix = f"sha256:{to.removeprefix('sha256:')}"
    matches = [entry for entry in history if entry.digest.startswith(prefix)]
    if len(matches) > 1:
        names = ", ".join(shorten(entry.digest) for entry in matches)
        raise CliError(f"--to {to} is ambiguous: {names}; write more digits")
    if requested.digest.startswith(prefix) and len(prefix) > len("sha256:"):
        raise CliError(f"--to {to} is the version that the spec asks for: to serve it, use --undo")
    if not matches:
        digests = [shorten(entry.digest) for entry in history if entry.digest != requested.digest]
        raise CliError(
            f"--to {to}: status.history has no such version that every pod served; it has "
            f"{', '.join(digests) or 'none'}"
        )
    return matches[0]


def _has_request(resource: Object) -> bool:
    try:
        return read_request(resource["metadata"]).to is not None
    except ValueError:
        return True
