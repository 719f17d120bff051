"""Write requests to the operator into annotations of an AdapterDeployment. Its spec stays as Git has it."""

import json
import sys

from finetune_api.adapterdeployment import AdapterDeploymentStatus, PromotionRequest, RollbackRequest
from finetune_api.lenient import read_known
from finetune_cli.cluster import Cluster, Object, object_path

KIND = "AdapterDeployment"


def annotate(
    cluster: Cluster, deployment: Object, annotation: str, request: PromotionRequest | RollbackRequest | None
) -> None:
    """Write a request into an annotation; None takes the annotation away."""
    path = object_path(KIND, cluster.namespace, deployment["metadata"]["name"])
    value = json.dumps(request.to_json()) if request is not None else None
    cluster.patch(path, {"metadata": {"annotations": {annotation: value}}})


def read_status(deployment: Object) -> AdapterDeploymentStatus:
    """Read the status of an AdapterDeployment; what a newer operator wrote is left out."""
    return read_known(AdapterDeploymentStatus, deployment.get("status") or {})[0]


def title(deployment: Object) -> str:
    """Return kind and name, as the subject of a message."""
    return f"{KIND} {deployment['metadata']['name']}"


def print_message(deployment: Object, text: str) -> None:
    """Print a sentence whose subject is the AdapterDeployment; ``text`` is its rest."""
    sys.stdout.write(f"{title(deployment)} {text}\n")
