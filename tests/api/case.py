"""A wrong object and the message for it: the API server and the models must agree on it."""

from dataclasses import dataclass
from typing import Any

from tests.api.objects import ADAPTER_DEPLOYMENT, FINETUNE_JOB, Object, changed

STARTED = {"uri": "s3://adapters/first"}
TEMPLATE = "spec.podTemplate"
EMPTY = {"name": "a", "emptyDir": {}}


@dataclass(frozen=True)
class Case:
    """A wrong object: the server's words and, if they differ, the models'."""

    name: str
    item: Object
    changes: dict[str, Any]
    field: str
    """Path of the field that must be named."""
    server: str
    """What `kubectl apply` must say."""
    models: str = ""
    """What `finetune render` must say, if it is not the same."""

    @property
    def wrong(self) -> Object:
        """Return the object."""
        return changed(self.item, self.changes)


def of_job(name: str, changes: dict[str, Any], path: str, server: str, models: str = "") -> Case:
    """Return a FineTuneJob with changes."""
    return Case(name, FINETUNE_JOB, changes, path, server, models)


def of_deployment(name: str, changes: dict[str, Any], path: str, server: str, models: str = "") -> Case:
    """Return an AdapterDeployment with changes."""
    return Case(name, ADAPTER_DEPLOYMENT, changes, path, server, models)
