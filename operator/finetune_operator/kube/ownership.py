"""Find who owns a field of an API object, from ``metadata.managedFields``. Pure."""

import json
from collections.abc import Iterable
from typing import Any

Path = tuple[str, ...]
"""Steps of a path in the API server's notation: ``f:spec``, ``k:{"name":"vllm"}``."""


SUSPEND_PATH = ("f:spec", "f:suspend")


def field_step(name: str) -> str:
    """Return the step to a field."""
    return f"f:{name}"


def item_step(**keys: Any) -> str:
    """Return the step to an item of a list, by its keys."""
    return "k:" + json.dumps(keys, separators=(",", ":"))


def find_owners(resource: dict[str, Any], path: Iterable[str]) -> set[str]:
    """Find the managers that own the field, or a field below it."""
    return {str(entry.get("manager", "")) for entry in find_entries(resource, path)}


def find_entries(resource: dict[str, Any], path: Iterable[str]) -> list[dict[str, Any]]:
    """Find the entries of ``managedFields`` that have the field, or a field below it."""
    steps = tuple(path)
    return [
        entry
        for entry in resource["metadata"].get("managedFields") or []
        if not entry.get("subresource") and _has(entry.get("fieldsV1") or {}, steps)
    ]


def _has(tree: dict[str, Any], steps: Path) -> bool:
    for step in steps:
        if step not in tree:
            return False
        tree = tree[step]
    return True
