"""Report that the pods of a FineTuneJob run and end, in place of a kubelet."""

import threading
from collections.abc import Callable

from kubernetes.client.exceptions import ApiException

from finetune_api.timestamps import current_timestamp
from tools.testing.kubernetes_api import GROUP, Api, Object
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED


class Kubelet(threading.Thread):
    """Let the pods of one FineTuneJob run and end, while the ``with`` block lasts."""

    def __init__(self, api: Api, parent: str, script: Callable[[str], tuple[int, Object] | None]) -> None:
        """Prepare the thread.

        Args:
            api: The API server.
            parent: Name of the FineTuneJob.
            script: Returns exit code and termination message of a Job's pod, by the Job's name. None: the pod runs on.
        """
        super().__init__(daemon=True)
        self.api = api
        self.parent = parent
        self.script = script
        self.stopping = threading.Event()

    def run(self) -> None:
        """Poll the pods. A pod may vanish or change between two calls."""
        while not self.stopping.wait(0.05):
            try:
                for pod in self.api.pods():
                    if pod["metadata"].get("annotations", {}).get(f"{GROUP}/finetunejob") == self.parent:
                        self.move(pod)
            except ApiException as error:
                if error.status not in (404, 409):
                    raise

    def move(self, pod: Object) -> None:
        """Move a pod to its next phase."""
        phase = pod["status"].get("phase")
        job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        if phase == "Pending":
            self.api.set_pod(pod, "Running", {"running": {"startedAt": current_timestamp()}})
        elif phase == "Running":
            ending = self.script(job)
            if ending is not None:
                self.api.end_pod(job, *ending)

    def __enter__(self) -> "Kubelet":
        """Start the thread."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self.stopping.set()
        self.join()


def good_run(job: str) -> tuple[int, Object]:
    """Return what a successful pod of this Job reports."""
    return 0, PREFLIGHT_PASSED if "preflight" in job else SUCCEEDED
