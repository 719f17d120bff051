"""What can go wrong in a call to the API server, each with the call and the server's own words."""

import json
from typing import Any


class KubeError(Exception):
    """A refused or failed call. ``status`` is the HTTP status, or 0 when no answer came; ``message`` is the server's."""

    def __init__(self, call: str, status: int, reason: str, message: str, causes: list[dict[str, Any]]) -> None:
        super().__init__(f"{call}: {status or 'no answer'} {reason}: {message}")
        self.call = call
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes


class NotFoundError(KubeError):
    """404: the object, its namespace or its kind is not there."""


class AlreadyExistsError(KubeError):
    """409 on a create: an object of this name is there."""


class ConflictError(KubeError):
    """409: the object changed since it was read, or (server-side apply) another field manager owns a field.

    ``causes`` has one entry per field of a server-side apply: its ``field`` path, and the owner in its ``message``.
    """


class ForbiddenError(KubeError):
    """403: no permission, a quota, or an admission policy."""


class InvalidError(KubeError):
    """422: the API server does not accept the object's content. ``causes`` name the fields."""


_BY_STATUS: dict[int, type[KubeError]] = {
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    422: InvalidError,
}


def from_response(call: str, status: int, body: bytes) -> KubeError:
    """The error of an HTTP answer, whose body is a ``metav1.Status`` unless something between answered."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {"message": body[:500].decode(errors="replace")}
    reason = str(answer.get("reason", ""))
    kind = AlreadyExistsError if reason == "AlreadyExists" else _BY_STATUS.get(status, KubeError)
    return kind(call, status, reason, str(answer.get("message", "")), (answer.get("details") or {}).get("causes") or [])
