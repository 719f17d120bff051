"""Check Kubernetes' ObjectMeta, as far as users write it. The CRDs do not contain its schema."""

from collections.abc import Iterator
from typing import Any

from finetune_api.core_v1.lists import LABEL, LABEL_KEY
from finetune_api.limits import MAX_NAME
from finetune_api.messages import Problem
from finetune_api.structural import PRESERVED, find_problems, find_unknown, matches

NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""A name of RFC 1123, as Secrets and most other objects have."""
NAMESPACE = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"
"""A name of RFC 1123 without dots. Empty: that of the kubeconfig's context."""
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": NAME, "minLength": 1, "maxLength": MAX_NAME},
        "generateName": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9-])?$", "maxLength": MAX_NAME},
        "namespace": {"type": "string", "pattern": NAMESPACE, "maxLength": 63},
        "labels": {
            "type": "object",
            "additionalProperties": {"type": "string", "pattern": LABEL, "maxLength": 63},
        },
        "annotations": STRINGS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array", "items": {PRESERVED: True}},
        "uid": {"type": "string"},
        "resourceVersion": {"type": "string"},
        "generation": {"type": "integer"},
        "creationTimestamp": {"type": "string"},
        "deletionTimestamp": {"type": "string"},
        "deletionGracePeriodSeconds": {"type": "integer"},
        "selfLink": {"type": "string"},
        "managedFields": {"type": "array", "items": {PRESERVED: True}},
    },
}


def find_wrong_names(metadata: Any) -> Iterator[Problem]:
    """Yield what is wrong with the metadata of an object."""
    for problem in find_unknown(metadata, METADATA, "metadata", {}):
        if problem.field in ("metadata.spec", "metadata.status"):
            message = "unknown field: it belongs next to metadata, not inside it: begin it in the first column"
            yield Problem(field=problem.field, message=message)
        else:
            yield problem
    yield from find_problems(metadata, METADATA, "metadata")
    if not isinstance(metadata, dict):
        return
    if not metadata.get("name") and not metadata.get("generateName"):
        yield Problem(field="metadata.name", message="is missing: give the object a name")
    for part in ("labels", "annotations"):
        keys = metadata.get(part)
        for key in keys if isinstance(keys, dict) else ():
            # Kubernetes lowers the key of an annotation before it checks it.
            if not matches(key.lower() if part == "annotations" else key, LABEL_KEY):
                yield Problem(
                    field=f"metadata.{part}.{key}",
                    message="is not a valid key of a label or annotation: write at most 63 letters, digits, -, _ and "
                    "., after a DNS name and / if you like",
                )
