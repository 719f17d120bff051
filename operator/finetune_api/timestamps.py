"""Write and read times as Kubernetes does: RFC 3339 in UTC with full seconds; write durations for people."""

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def check_timestamp(text: str) -> str:
    """Return the text if it is a time as the API server takes it.

    Raises:
        ValueError: If it is not.
    """
    if not RFC_3339.fullmatch(text):
        raise ValueError(f"{text!r} is no time with a zone: write it as 2026-01-02T03:04:05Z")
    parse_timestamp(text)
    return text


Timestamp = Annotated[str, AfterValidator(check_timestamp)]
"""A time of a status or a message, RFC 3339."""


def format_timestamp(moment: datetime) -> str:
    """Format a moment, for example as 2026-01-02T03:04:05Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(moment: datetime) -> str:
    """Format a moment as Kubernetes' MicroTime, for example as 2026-01-02T03:04:05.000006Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_timestamp(text: str) -> datetime:
    """Parse an RFC 3339 time of Kubernetes or of one of our pods."""
    return datetime.fromisoformat(text)


def current_timestamp() -> str:
    """Return the current time as text."""
    return format_timestamp(datetime.now(UTC))


def format_duration(seconds: float) -> str:
    """Format a duration: ``45s``, ``12m30s``, ``3h05m``, ``2d4h``."""
    total = max(0, round(seconds))
    if total < 120:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600}h"
