"""Report that the pods of a FineTuneJob run and end, in place of a kubelet."""

import threading
from collections.abc import Callable, Container

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from finetune_api.timestamps import current_timestamp
from tools.testing.kubernetes_api import GROUP, Api, Object
from tools.testing.operator_messages import PREFLIGHT_PASSED, SUCCEEDED

LIVING = "status.phase!=Succeeded,status.phase!=Failed"


class Kubelet(threading.Thread):
    """Let the pods of one FineTuneJob, or of all, run and end, while the ``with`` block lasts."""

    def __init__(
        self,
        api: Api,
        parent: str | None,
        script: Callable[[str], tuple[int, Object | str] | None],
        evicted: Container[str] = (),
    ) -> None:
        """Prepare the thread.

        Args:
            api: The API server.
            parent: Name of the FineTuneJob; None: all of the namespace.
            script: Returns exit code and termination message of a Job's pod, by the Job's name. None: the pod runs on.
            evicted: Names of Jobs whose first pod is evicted once the operator has seen it running.
        """
        super().__init__(daemon=True)
        self.api = api
        self.parent = parent
        self.script = script
        self.evicted = evicted
        self.evicted_from = set[str]()
        self.stopping = threading.Event()

    def run(self) -> None:
        """Poll the pods. A pod may vanish or change between two calls, and the API server may not answer."""
        while not self.stopping.wait(0.05):
            try:
                for pod in self.list_pods():
                    self.move(pod)
            except ApiException as error:
                if error.status not in (404, 409):
                    raise
            except HTTPError:
                continue

    def list_pods(self) -> list[Object]:
        """List the pods that have not ended."""
        pods = self.api.plain(self.api.core.list_namespaced_pod(self.api.namespace, field_selector=LIVING).items)
        parents = [pod["metadata"].get("annotations", {}).get(f"{GROUP}/finetunejob") for pod in pods]
        return [pod for pod, parent in zip(pods, parents, strict=True) if parent and self.parent in (None, parent)]

    def move(self, pod: Object) -> None:
        """Move a pod to its next phase."""
        phase = pod["status"].get("phase")
        labels = pod["metadata"]["labels"]
        job, uid = labels["batch.kubernetes.io/job-name"], labels["batch.kubernetes.io/controller-uid"]
        if phase == "Pending":
            self.api.set_pod(pod, "Running", {"running": {"startedAt": current_timestamp()}})
        elif phase == "Running" and job in self.evicted and uid not in self.evicted_from:
            if self.api.condition(pod["metadata"]["annotations"][f"{GROUP}/finetunejob"], "Running") == (
                "True",
                "Training",
            ):
                self.api.evict_pod(
                    job, 40, {"kind": "TrainerResult", "reason": "Preempted", "message": "asked to stop"}
                )
                self.evicted_from.add(uid)
        elif phase == "Running":
            ending = self.script(job)
            if ending is not None:
                self.api.end(pod, *ending)

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
