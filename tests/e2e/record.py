"""Record by a watch all versions of the objects of a kind; polling would miss some."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.namespace import Namespace, Object

RETRY_SECONDS = 0.5


class Record:
    """The versions that the API server reported, the oldest first; deletions too."""

    def __init__(self, namespace: Namespace, kind: str) -> None:
        """Prepare the watch of a kind in a namespace."""
        self.versions: list[Object] = []
        self._command = [
            *(str(namespace.cluster.bin("kubectl")), f"--kubeconfig={namespace.cluster.kubeconfig}", "get", kind),
            *(f"--namespace={namespace.name}", "--watch", "--output-watch-events", "--output=json"),
        ]
        self._ended = threading.Event()
        self._watch: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def of(self, name: str) -> list[Object]:
        """Return the versions of one object."""
        return [item for item in list(self.versions) if item["metadata"]["name"] == name]

    def pods_of(self, job: str) -> dict[str, Object]:
        """Return each pod that a FineTuneJob ever had, by name, in its last version."""
        return {
            item["metadata"]["name"]: item
            for item in list(self.versions)
            if item["metadata"].get("labels", {}).get("finetune-operator.io/finetunejob") == job
        }

    def start(self) -> None:
        """Start the watch; it waits for a kind that is not known yet."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()
        if self._watch:
            self._watch.terminate()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            with subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as self._watch:
                self._read(self._watch)
            self._ended.wait(RETRY_SECONDS)

    def _read(self, watch: "subprocess.Popen[str]") -> None:
        assert watch.stdout
        for line in watch.stdout:
            event = json.loads(line)
            # A watch that has become too old ends with an error event; the next one begins with all that is there.
            if event["type"] != "ERROR":
                self.versions.append(event["object"])


@contextmanager
def recording(namespace: Namespace, kind: str) -> Iterator[Record]:
    """Record the objects of a kind for the block."""
    record = Record(namespace, kind)
    record.start()
    try:
        yield record
    finally:
        record.stop()
