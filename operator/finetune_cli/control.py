"""Run ``finetune suspend`` and ``cancel``, and ``resume`` of a FineTuneJob."""

import sys

from finetune_cli.cluster import Cluster, Object, object_path


def suspend(cluster: Cluster, name: str, suspended: bool) -> None:
    """Set ``spec.suspend``. Raises CliError."""
    job = cluster.find_one("FineTuneJob", name)
    if bool(job["spec"].get("suspend")) is suspended:
        _print_message(job, f"is {'' if suspended else 'not '}suspended already")
        return
    cluster.patch(_path(cluster, job), {"spec": {"suspend": suspended}})
    _print_message(job, "suspended" if suspended else "resumed")


def cancel(cluster: Cluster, name: str) -> None:
    """Delete the job. Raises CliError."""
    job = cluster.find_one("FineTuneJob", name)
    cluster.call("DELETE", _path(cluster, job), {"propagationPolicy": "Background"})
    _print_message(job, "is deleted: its pods save a checkpoint and end")


def _path(cluster: Cluster, job: Object) -> str:
    return object_path("FineTuneJob", cluster.namespace, job["metadata"]["name"])


def _print_message(job: Object, text: str) -> None:
    sys.stdout.write(f"FineTuneJob {job['metadata']['name']} {text}\n")
