"""Run ``finetune watch``: follow one object until it is Ready or has failed."""

import json
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from finetune_cli.cluster import Cluster, GoneError, NotFoundError, Object, collection_path
from finetune_cli.errors import CliError
from finetune_cli.text import condition, outcome, phase, progress, report

WATCH_SECONDS = 120
PAUSE_SECONDS = 1.0


def watch(cluster: Cluster, name: str, timeout: float | None) -> None:
    """Wait until the job of this name is Ready, then the AdapterDeployment of this name.

    Raises:
        CliError: It failed, was deleted, or took longer than ``timeout`` seconds; the message has the reason.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    for item in cluster.find(name):
        follow(cluster, item, deadline)


def follow(cluster: Cluster, item: Object, deadline: float | None) -> None:
    """Show one object until it is Ready, then its results. Raises CliError."""
    name = f"{item['kind']} {item['metadata']['name']}"
    view = Live(name) if sys.stdout.isatty() else Lines(name)
    last = item
    with view:
        for last in watch_object(cluster, item, deadline):
            view.show(last)
            if has_ended(last):
                break
    for line in [*outcome(last), *report(last)]:
        sys.stdout.write(f"{line}\n")
    ready = condition(last, "Ready")
    if ready.get("status") != "True":
        stalled = condition(last, "Stalled") or ready
        raise CliError(f"{name}: {stalled.get('reason')}: {stalled.get('message')}")


def has_ended(item: Object) -> bool:
    """Return whether the object is Ready or has failed for good, by a status of its current spec."""
    if item.get("status", {}).get("observedGeneration") != item["metadata"]["generation"]:
        return False
    return condition(item, "Ready").get("status") == "True" or condition(item, "Stalled").get("status") == "True"


def watch_object(cluster: Cluster, item: Object, deadline: float | None) -> Iterator[Object]:
    """Yield the object now and after each change. Raises CliError if it is deleted, and at the deadline (monotonic)."""
    kind, name, uid = item["kind"], item["metadata"]["name"], item["metadata"]["uid"]
    path = collection_path(kind, cluster.namespace)
    while True:
        yield item
        try:
            for event in _events(cluster, path, item, deadline):
                if event["type"] == "DELETED":
                    raise CliError(f"{kind} {name} was deleted")
                item = {**event["object"], "kind": kind}
                yield item
        except GoneError:
            time.sleep(PAUSE_SECONDS)
        if deadline is not None and time.monotonic() >= deadline:
            raise CliError(
                f"{kind} {name} is not done yet: {phase(item)}: {condition(item, 'Ready').get('message', '')}"
            )
        try:
            item = {**cluster.object(kind, cluster.namespace, name), "kind": kind}
        except NotFoundError:
            raise CliError(f"{kind} {name} was deleted") from None
        if item["metadata"]["uid"] != uid:
            raise CliError(f"{kind} {name} was deleted, and another one of its name was created")


def _events(cluster: Cluster, path: str, item: Object, deadline: float | None) -> Iterator[Object]:
    seconds = WATCH_SECONDS if deadline is None else max(1, min(WATCH_SECONDS, round(deadline - time.monotonic())))
    query = {
        "watch": "true",
        "fieldSelector": f"metadata.name={item['metadata']['name']}",
        "resourceVersion": item["metadata"]["resourceVersion"],
        "timeoutSeconds": seconds,
    }
    for line in cluster.lines(path, query, seconds + 10):
        event: Object = json.loads(line)
        if event["type"] == "ERROR":
            raise GoneError(str(event["object"].get("message")))
        yield event


class Lines:
    """Prints one plain line after each change, for pipes and logs."""

    def __init__(self, name: str) -> None:
        """Begin without a state."""
        self._name = name
        self._last = ""

    def __enter__(self) -> "Lines":
        """Start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        return

    def show(self, item: Object) -> None:
        """Print the object's state if it changed."""
        text = summary(item)
        if text != self._last:
            sys.stdout.write(f"{self._name}: {text}\n")
            sys.stdout.flush()
            self._last = text


class Live:
    """Shows one line that changes, for terminals."""

    def __init__(self, name: str) -> None:
        """Prepare the line."""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=Console(highlight=False),
        )
        self._task = self._progress.add_task(name, total=None, text="")

    def __enter__(self) -> "Live":
        """Start the line."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._progress.stop()

    def show(self, item: Object) -> None:
        """Update the line."""
        counts = item.get("status", {}).get("progress") or item.get("status", {}).get("pods") or {}
        total, done = counts.get("totalSteps", counts.get("total")), counts.get("step", counts.get("updated"))
        self._progress.update(self._task, total=total or None, completed=done or 0, text=summary(item))


def summary(item: Object) -> str:
    """Return the state in one line."""
    ready = condition(item, "Ready")
    details = progress(item)
    if pods := item.get("status", {}).get("pods"):
        details = f"{pods.get('updated', 0)}/{pods.get('total', 0)} pods"
    running = phase(item) in ("Training", "RollingOut") and details
    return f"{phase(item)}: {details if running else ready.get('message', '')}"
