"""Build and read the ConfigMap from which the agents of a serving group read what to serve. Pure."""

import hashlib
import json
from typing import Any

from pydantic import ValidationError

from finetune_api import GROUP
from finetune_api.messages import DESIRED_KEY, DesiredState
from finetune_operator.kube.kinds import DEPLOYMENT_ANNOTATION, FIELD_MANAGER, MANAGED_BY_LABEL, ROLE_LABEL
from finetune_operator.kube.ownership import field_step, find_owners
from finetune_operator.resources.injection import DESIRED_ROLE, config_map_name

STATE_ANNOTATION = f"{GROUP}/desired-state"
"""Annotation of pods: digest of the newest desired state. Its change makes the kubelet refresh the volumes at once."""


def build_config_map(namespace: str, group: str, state: DesiredState) -> dict[str, Any]:
    """Build the ConfigMap; equal states give equal bytes."""
    return {
        "metadata": {
            "namespace": namespace,
            "name": config_map_name(group),
            "labels": {ROLE_LABEL: DESIRED_ROLE, MANAGED_BY_LABEL: FIELD_MANAGER},
            "annotations": {DEPLOYMENT_ANNOTATION: group},
        },
        "data": {DESIRED_KEY: json.dumps(state.to_json(), indent=1, sort_keys=True) + "\n"},
    }


def read_config_map(config_map: dict[str, Any] | None) -> DesiredState:
    """Read the desired state; an empty one if there is no ConfigMap or its content is not valid."""
    text = ((config_map or {}).get("data") or {}).get(DESIRED_KEY)
    try:
        return DesiredState.model_validate_json(text) if text else DesiredState()
    except ValidationError:
        return DesiredState()


def is_written(config_map: dict[str, Any] | None, desired: dict[str, Any]) -> bool:
    """Return whether the ConfigMap has the desired data, labels and annotations."""
    if config_map is None or config_map.get("data") != desired["data"]:
        return False
    meta = config_map["metadata"]
    return all(
        (meta.get(kind) or {}).get(key) == value
        for kind in ("labels", "annotations")
        for key, value in desired["metadata"][kind].items()
    )


def is_ours(config_map: dict[str, Any]) -> bool:
    """Return whether the operator wrote the ConfigMap.

    Its labels show that or, if somebody removed them, the data's owner in ``managedFields``. Cached objects have no
    ``managedFields``.
    """
    labelled = (config_map["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == FIELD_MANAGER
    return labelled or FIELD_MANAGER in find_owners(config_map, [field_step("data"), field_step(DESIRED_KEY)])


def compute_state_digest(config_map: dict[str, Any]) -> str:
    """Compute the value of ``STATE_ANNOTATION`` for a ConfigMap."""
    return hashlib.sha256(config_map["data"][DESIRED_KEY].encode()).hexdigest()[:16]
