"""Find the version to which an AdapterDeployment can go back, and read a person's request to go back.

The request is an annotation, because the spec belongs to Git and the status to the operator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from finetune_api import GROUP
from finetune_api.adapterdeployment.status import HistoryEntry
from finetune_api.base import Lenient, Sha256

ROLLBACK_ANNOTATION = f"{GROUP}/rollback"
"""On an AdapterDeployment: a ``RollbackRequest`` as JSON. `finetune rollback` writes it."""


class RollbackRequest(Lenient):
    """A person's request: serve ``to`` while the spec asks for ``from``, or undo an automatic rollback."""

    from_digest: Sha256 | None = Field(None, alias="from", description="Digest of the version to go back from.")
    to: Sha256 | None = Field(None, description="Digest of the version to serve in its place.")
    undone: str | None = Field(
        None, description="status.rollback.at of the automatic rollback to undo: the version is tried again."
    )


def read_request(metadata: Mapping[str, Any]) -> RollbackRequest:
    """Read the request from an object's metadata; without the annotation it is empty.

    Raises:
        ValueError: The annotation is no valid request; the message says what is wrong.
    """
    text = (metadata.get("annotations") or {}).get(ROLLBACK_ANNOTATION)
    if text is None:
        return RollbackRequest()
    try:
        request = RollbackRequest.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{field}: {problem['msg']}" if field else str(problem["msg"])) from error
    if (request.from_digest is None) != (request.to is None):
        raise ValueError("from and to belong together: set both, or neither")
    return request


def list_deployed(history: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    """List the versions that every pod served once, each with its newest entry, the newest first."""
    entries: dict[str, HistoryEntry] = {}
    for entry in history:
        if entry.event == "Deployed":
            entries.setdefault(entry.digest, entry)
    return list(entries.values())


def list_rolled_back(history: Sequence[HistoryEntry]) -> set[str]:
    """List the digests of versions that were rolled back and that not every pod has served since then."""
    newest = {entry.digest: entry.event for entry in reversed(history) if entry.event != "Failed"}
    return {digest for digest, event in newest.items() if event == "RolledBack"}


def find_last_good(history: Sequence[HistoryEntry], digest: str) -> HistoryEntry | None:
    """Find the newest version, other than ``digest``, that every pod served and that is not rolled back."""
    bad = {digest, *list_rolled_back(history)}
    return next((entry for entry in list_deployed(history) if entry.digest not in bad), None)
