"""Run ``finetune suspend``, ``resume`` and ``cancel``: change what the cluster does with an object."""

import sys

from finetune_cli.cluster import Cluster, Object, collection_path
from finetune_cli.errors import CliError


def suspend(cluster: Cluster, name: str, suspended: bool) -> None:
    """Set ``spec.suspend`` of the objects of a name. Raises CliError."""
    for item in cluster.find(name):
        kind, word = item["kind"], "suspended" if suspended else "resumed"
        if bool(item["spec"].get("suspend")) is suspended:
            sys.stdout.write(f"{kind} {item['metadata']['name']} is {'' if suspended else 'not '}suspended already\n")
            continue
        try:
            cluster.patch(_path(cluster, item), {"spec": {"suspend": suspended}})
        except CliError as error:
            if 'unknown field "spec.suspend"' in str(error):
                raise CliError(
                    f"a {kind} cannot be suspended in this cluster: its CRD has no spec.suspend. Upgrade the CRDs"
                ) from error
            raise
        sys.stdout.write(f"{kind} {item['metadata']['name']} {word}\n")


def cancel(cluster: Cluster, name: str) -> None:
    """Delete a FineTuneJob. Raises CliError."""
    item = cluster.one("FineTuneJob", name)
    cluster.call("DELETE", _path(cluster, item), {"propagationPolicy": "Background"})
    sys.stdout.write(f"FineTuneJob {item['metadata']['name']} is deleted: its pods save a checkpoint and end\n")


def _path(cluster: Cluster, item: Object) -> str:
    return f"{collection_path(item['kind'], cluster.namespace)}/{item['metadata']['name']}"
