"""Read objects of a namespace over one connection; each call of kubectl would take 0.2 CPU seconds."""

import json
from pathlib import Path
from typing import Any

from kubernetes import config

Object = dict[str, Any]
GROUPS = {
    "api/v1": ("configmaps", "pods", "serviceaccounts", "services"),
    "apis/apps/v1": ("deployments", "statefulsets"),
    "apis/batch/v1": ("jobs",),
    "apis/finetune-operator.io/v1alpha1": ("adapterdeployments", "finetunejobs"),
    "apis/networking.k8s.io/v1": ("networkpolicies",),
    "apis/rbac.authorization.k8s.io/v1": ("rolebindings", "roles"),
}
PATHS = {resource: group for group, resources in GROUPS.items() for resource in resources}


class Reader:
    """Reads the objects of one namespace as the plain JSON of the API server."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        """Connect as the user of a kubeconfig."""
        self._client: Any = config.new_client_from_config(str(kubeconfig))
        self._namespace = namespace

    def find(self, kind: str, name: str) -> Object | None:
        """Return an object, or None where there is none. ``kind`` is singular or plural, as for kubectl."""
        return self._get(f"{self._path(kind)}/{name}", {})

    def get(self, kind: str, name: str) -> Object:
        """Return an object that must exist."""
        resource = self.find(kind, name)
        assert resource is not None, f"there is no {kind} {name} in {self._namespace}"
        return resource

    def list(self, kind: str, selector: str = "") -> list[Object]:
        """Return the objects of a kind, by labels."""
        answer = self._get(self._path(kind), {"labelSelector": selector})
        assert answer is not None, f"the API server does not know {kind}"
        return list(answer["items"])

    def _path(self, kind: str) -> str:
        resource = kind if kind in PATHS else f"{kind}s"
        return f"/{PATHS[resource]}/namespaces/{self._namespace}/{resource}"

    def _get(self, path: str, query: dict[str, str]) -> Object | None:
        request = self._client.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(*request).response
        if answer.status == 404:
            return None
        assert answer.status == 200, f"GET {path}: {answer.status} {answer.data.decode()}"
        return dict(json.loads(answer.data))
