"""Helm as a user runs it: the chart rendered to objects, or a command against a cluster."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from devcluster.binaries import program
from devcluster.cluster import Cluster

CHART = Path("charts/finetune-operator")
NAMESPACE = "finetune-system"
IMAGES = {
    "image.repository": "registry.example.com/operator",
    "trainerImage.repository": "registry.example.com/trainer",
}
Object = dict[str, Any]


class HelmError(Exception):
    """Helm failed; the text is what it printed."""


def helm(*arguments: str, cluster: Cluster | None = None) -> str:
    """Run helm and return what it prints. Raises HelmError."""
    options = ["--kubeconfig", str(cluster.kubeconfig)] if cluster else []
    completed = subprocess.run(
        [str(program("helm")), *arguments, *options], capture_output=True, text=True, check=False
    )
    if completed.returncode != 0:
        raise HelmError(completed.stdout + completed.stderr)
    return completed.stdout


def settings(values: dict[str, str]) -> list[str]:
    """Return the options that set the values, beside the images."""
    return [f"--set={name}={value}" for name, value in {**IMAGES, **values}.items()]


def render(values: dict[str, str] | None = None, release: str = "finetune-operator") -> list[Object]:
    """Render the objects that `helm install` would create, hooks among them. Raises HelmError."""
    text = helm("template", release, str(CHART), "--namespace", NAMESPACE, *settings(values or {}))
    return [item for item in yaml.load_all(text, Loader=yaml.CSafeLoader) if item]  # ten times as fast as safe_load_all


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """Return the objects of these kinds, without hooks."""
    return [item for item in objects if item["kind"] in kinds and not is_hook(item)]


def is_hook(item: Object) -> bool:
    """Tell whether Helm makes the object for a moment only."""
    return "helm.sh/hook" in (item["metadata"].get("annotations") or {})


def operator_environment(objects: list[Object]) -> dict[str, str]:
    """Return the variables that the chart gives the operator, apart from those that come from the pod."""
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def engine(**pod: Any) -> Object:
    """Return an inference Deployment, as far as the chart is concerned, with this spec of its pods."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "vllm"},
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"}},
            "template": {"metadata": {"labels": {"app": "vllm"}}, "spec": pod},
        },
    }
