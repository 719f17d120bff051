"""Decide whether an older version is served in place of the version in the spec. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.adapterdeployment import (
    ROLLBACK_ANNOTATION,
    AdapterDeploymentStatus,
    AdapterVersion,
    list_deployed,
    read_request,
)
from finetune_api.reasons import Reason


@dataclass(frozen=True)
class RollbackInForce:
    """An older version is served: which one, and why."""

    target: AdapterVersion
    reason: str
    message: str


def find_rollback(
    metadata: Mapping[str, Any], status: AdapterDeploymentStatus, digest: str, *, until_next_version: bool
) -> tuple[RollbackInForce | None, str]:
    """Find the rollback in force, and a note about a request that is not followed (or an empty text).

    A person's request holds until it is withdrawn, or the spec asks for another version. An automatic rollback, which
    an earlier pass wrote into the status, holds until the spec changes or a person undoes it.

    Args:
        metadata: Metadata of the AdapterDeployment.
        status: Its status.
        digest: Digest of the version that the spec asks for.
        until_next_version: An automatic rollback holds until the spec leads to another version, whatever is edited.
    """
    try:
        request = read_request(metadata)
    except ValueError as error:
        return None, f"the annotation {ROLLBACK_ANNOTATION} is not followed: {error}"
    note = ""
    if request.to is not None and request.from_digest == digest != request.to:
        target = _find_version(status, request.to)
        if target is not None:
            text = f"a person asked for it (annotation {ROLLBACK_ANNOTATION})"
            return RollbackInForce(target, Reason.ROLLBACK_REQUESTED, text), ""
        note = f"the annotation {ROLLBACK_ANNOTATION} is not followed: status.history has no {request.to}"
    current = status.rollback
    if current is None or status.desired is None or current.from_version.digest != digest:
        return None, note
    is_spec_unchanged = until_next_version or status.observed_generation == metadata.get("generation")
    if current.reason == Reason.ROLLBACK_REQUESTED or current.at == request.undone or not is_spec_unchanged:
        return None, note
    return RollbackInForce(status.desired, current.reason, current.message), note


def _find_version(status: AdapterDeploymentStatus, digest: str) -> AdapterVersion | None:
    """Find a version that every pod has served. The version of a current rollback may have left the history."""
    versions = [*list_deployed(status.history), status.desired if status.rollback is not None else None]
    target = next((version for version in versions if version is not None and version.digest == digest), None)
    return strip_version(target) if target is not None else None


def strip_version(version: AdapterVersion) -> AdapterVersion:
    """Return the version alone, without the times and the outcome of an entry in the history."""
    names = ("uri", "digest", "fine_tune_job", "s3", "secret_ref")
    return AdapterVersion(**{name: getattr(version, name) for name in names})
