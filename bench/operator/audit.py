"""Read the API server's audit log: who wrote what, and when by the server's clock."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

READS = frozenset({"get", "list", "watch"})


@dataclass(frozen=True)
class Write:
    """A request that changed an object."""

    agent: str
    verb: str
    resource: str
    """The resource with its subresource, for example ``pods/status``."""
    name: str
    received: datetime
    answered: datetime
    code: int


def read(log: Path, namespace: str) -> list[Write]:
    """Return all successful writes to a namespace, sorted by the time of the response."""
    return [write for write in read_all(log, namespace) if write.code < 300]


def read_all(log: Path, namespace: str) -> list[Write]:
    """Return all writes to a namespace, also refused ones, sorted by the time of the response."""
    with log.open() as lines:
        return sorted(_writes(lines, namespace), key=lambda write: write.answered)


def _writes(lines: Iterator[str], namespace: str) -> Iterator[Write]:
    for line in lines:
        if namespace not in line:
            continue
        event = json.loads(line)
        target = event.get("objectRef", {})
        is_over = event["stage"] == "ResponseComplete"
        if target.get("namespace") == namespace and is_over and event["verb"] not in READS:
            resource = "/".join(part for part in (target["resource"], target.get("subresource")) if part)
            yield Write(
                event.get("userAgent", ""),
                event["verb"],
                resource,
                target.get("name", ""),
                datetime.fromisoformat(event["requestReceivedTimestamp"]),
                datetime.fromisoformat(event["stageTimestamp"]),
                event.get("responseStatus", {}).get("code", 500),
            )


def of_operator(writes: Sequence[Write]) -> list[Write]:
    """Return the writes of the operator."""
    return [write for write in writes if write.agent == "finetune-operator"]


def first(writes: Sequence[Write], verb: str, resource: str, name: str) -> Write:
    """Return the first write with this verb, resource and name. Raises LookupError if there is none."""
    for write in writes:
        if (write.verb, write.resource, write.name) == (verb, resource, name):
            return write
    raise LookupError(f"the audit log has no {verb} of {resource} {name}")


def counts(writes: Sequence[Write]) -> dict[str, int]:
    """Count writes by verb and resource."""
    return dict(sorted(Counter(f"{write.verb} {write.resource}" for write in writes).items()))
