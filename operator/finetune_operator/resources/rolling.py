"""Build what the strategy Rolling adds to a template: versions, and a container that waits for them. Pure.

The pods read their versions from an annotation of the template, so another version replaces them. A pod serves what
its template says, whatever the operator does meanwhile.
"""

import json
from pathlib import Path
from typing import Any

from finetune_api.messages import ADAPTERS_DIRECTORY, DESIRED_KEY, DesiredState
from finetune_api.version_paths import path_variable, version_directory
from finetune_engines.arguments import list_path_variables
from finetune_operator.resources.injected import FETCH_CONTAINER, VERSIONS_ANNOTATION, VERSIONS_VOLUME, find_container


def build_template_state(state: DesiredState) -> DesiredState:
    """Build the state for a pod template, without fields that change while pods run. A change would replace them."""
    adapters = [
        adapter.model_copy(update={"previous": None, "pods": None, "last_good": None, "drain": True})
        for adapter in state.adapters
    ]
    return state.model_copy(update={"rolling": True, "adapters": adapters})


def build_annotations(state: DesiredState) -> dict[str, str]:
    """Build the annotation with the state; equal states give equal bytes."""
    return {VERSIONS_ANNOTATION: json.dumps(state.to_json(), sort_keys=True, separators=(",", ":"))}


def build_versions_volume() -> dict[str, Any]:
    """Build the volume with the annotation as a file."""
    field = {"fieldPath": f"metadata.annotations['{VERSIONS_ANNOTATION}']"}
    return {"name": VERSIONS_VOLUME, "downwardAPI": {"items": [{"path": DESIRED_KEY, "fieldRef": field}]}}


def build_fetch_container(agent: dict[str, Any]) -> dict[str, Any]:
    """Build the container that delays the engine's start until all versions are downloaded and checked."""
    names = ("image", "imagePullPolicy", "resources", "securityContext")
    return {
        "name": FETCH_CONTAINER,
        **{name: agent[name] for name in names},
        "command": ["python", "-m", "finetune_agent.wait"],
    }


def build_path_variables(state: DesiredState) -> dict[str, str]:
    """Build the variables that the engine's arguments may name: the directory of each version."""
    return {
        path_variable(adapter.deployment): str(
            version_directory(Path(ADAPTERS_DIRECTORY), adapter.served_name, adapter.version.digest)
        )
        for adapter in state.adapters
    }


def loads_at_start(deployment: dict[str, Any], container: str, state: DesiredState) -> bool:
    """Return whether the engine's arguments name every version: then it needs no adapter at run time."""
    named = list_path_variables(find_container(deployment, container) or {})
    return named.issuperset(build_path_variables(state))
