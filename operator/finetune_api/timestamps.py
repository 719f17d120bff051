"""Write and read times as Kubernetes does: RFC 3339 in UTC with whole seconds."""

from datetime import UTC, datetime


def format_timestamp(moment: datetime) -> str:
    """Format a moment, for example as 2026-01-02T03:04:05Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """Parse an RFC 3339 time of Kubernetes or of one of our pods."""
    return datetime.fromisoformat(text)


def current_timestamp() -> str:
    """Return the current time as text."""
    return format_timestamp(datetime.now(UTC))
