"""Define the errors of calls to the API server, each with the call and the server's message."""

import json
from typing import Any


class KubeError(Exception):
    """A refused or failed call; ``status`` is the HTTP status, or 0 without an answer."""

    def __init__(self, call: str, status: int, reason: str, message: str, causes: list[dict[str, Any]]) -> None:
        """Keep the call and the server's answer; ``causes`` has one entry for each field that is wrong."""
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
    """409: the object changed since it was read, or somebody else owns a field that is applied.

    ``causes`` then has the path of each such ``field``, and its owner in the ``message``.
    """


class ForbiddenError(KubeError):
    """403: no permission, a quota, or an admission policy."""


class ExpiredError(KubeError):
    """410: the API server no longer has the changes since the resource version: list again."""


class InvalidError(KubeError):
    """422: the API server does not accept the object's content; ``causes`` name the fields."""


_BY_STATUS: dict[int, type[KubeError]] = {
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: ExpiredError,
    422: InvalidError,
}


def from_response(call: str, status: int, body: bytes) -> KubeError:
    """Make the error of an HTTP answer. Its body is a ``metav1.Status``, unless a proxy answered."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {"message": body[:500].decode(errors="replace")}
    return from_status(call, status, answer)


def from_status(call: str, status: int, answer: dict[str, Any]) -> KubeError:
    """Make the error of a ``metav1.Status``."""
    reason = str(answer.get("reason", ""))
    kind = AlreadyExistsError if reason == "AlreadyExists" else _BY_STATUS.get(status, KubeError)
    return kind(call, status, reason, str(answer.get("message", "")), (answer.get("details") or {}).get("causes") or [])
