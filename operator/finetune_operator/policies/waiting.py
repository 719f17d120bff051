"""Explain why a pod does not run yet, with the message of the component that reports it. Pure."""

from dataclasses import dataclass

from finetune_api.limits import OUTPUT_MESSAGE_CHARACTERS, end_sentence, truncate
from finetune_api.reasons import Reason
from finetune_operator.kube.kinds import JOB_NAME_LABEL, Object
from finetune_operator.policies.batch_job import find_suspender
from finetune_operator.policies.refusal import find_remedy

PULL_FAILURES = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of a waiting container that is about to start."""
SILENT_SECONDS = 120.0
"""For how long a pod may be starting before a message says that nothing explains it."""
FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 3.0, 60.0
"""Shortest and longest time between two looks at the events that say why a pod does not start."""
PULL_REMEDY = (
    "Check the image's name, whether the node reaches the registry, and whether spec.podTemplate.imagePullSecrets "
    "names the Secret for it."
)
START_REMEDY = "Create what it names in this namespace, or correct spec.podTemplate."
SCHEDULE_REMEDY = "The pod starts when a node fits: compare its requests with the nodes."


@dataclass(frozen=True)
class Waiting:
    """The pod does not run yet.

    ``is_failing``: a container on a node fails to start. While it waits, the pod reserves a GPU without using it.
    """

    reason: Reason
    message: str
    is_failing: bool = False


def explain_missing_pod(refusal: str | None) -> Waiting:
    """Explain why a Job has no pod. ``refusal`` is the message with which its pod was last refused, if it was."""
    if refusal is None:
        return Waiting(Reason.PENDING, "The pod is starting.")
    words = truncate(refusal.removeprefix("Error creating: "), OUTPUT_MESSAGE_CHARACTERS)
    return Waiting(Reason.POD_REFUSED, f"The cluster refuses the pod: {end_sentence(words)} {find_remedy(words)}")


def explain_replacement() -> Waiting:
    """Say why the pod that replaces another one is not there yet."""
    text = (
        "Its Job replaces the pod that was taken away. Kubernetes waits 10 s before it does so, after each further "
        "time twice as long, and at most 10 minutes."
    )
    return Waiting(Reason.RETRYING, text)


def explain_suspension(batch_job: Object) -> Waiting:
    """Explain who suspended a Job: Kueue or a person. It gets a pod when it is resumed, so its run is not over."""
    text = (
        f"The Job {batch_job['metadata']['name']} is suspended by {find_suspender(batch_job)}, and continues when its "
        "spec.suspend is false again. No other pod takes its place."
    )
    return Waiting(Reason.SUSPENDED, text)


def explain_unstarted_pod(pod: Object, warning: str | None) -> Waiting:
    """Explain why a container of a pod does not run yet. ``warning`` is the newest warning Event, if there is one."""
    for name, waiting in _find_waiting(pod):
        reason, words = waiting.get("reason", ""), truncate(waiting.get("message", ""), OUTPUT_MESSAGE_CHARACTERS)
        text = f"Container {name}: {reason}: {end_sentence(words)}" if words else f"Container {name}: {reason}."
        if reason in PULL_FAILURES:
            return Waiting(Reason.IMAGE_PULL_FAILED, f"{text} {PULL_REMEDY}", is_failing=True)
        if reason not in STARTING:
            return Waiting(Reason.CONTAINER_NOT_STARTED, f"{text} {START_REMEDY}", is_failing=True)
    conditions = {condition["type"]: condition for condition in pod["status"].get("conditions", ())}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        words = truncate(str(scheduled.get("message") or "No node fits the pod."), OUTPUT_MESSAGE_CHARACTERS)
        return Waiting(Reason.UNSCHEDULABLE, f"{end_sentence(words)} {SCHEDULE_REMEDY}")
    if warning is not None and conditions.get("PodReadyToStartContainers", {}).get("status") != "True":
        words = end_sentence(truncate(warning, OUTPUT_MESSAGE_CHARACTERS))
        return Waiting(Reason.CONTAINER_NOT_STARTED, f"The node cannot start the pod: {words} {START_REMEDY}")
    return Waiting(Reason.PENDING, "The pod is starting.")


def break_silence(waiting: Waiting, seconds: float, batch_job: str) -> Waiting:
    """Return a message for a pod that has not started for ``seconds``, if nothing explains why."""
    if waiting.reason is not Reason.PENDING or seconds < SILENT_SECONDS:
        return waiting
    text = (
        f"The pod of Job {batch_job} has not started for more than {SILENT_SECONDS:.0f} s, and nothing says why. It "
        f"may still download its image. See kubectl describe pods --selector {JOB_NAME_LABEL}={batch_job}"
    )
    return Waiting(Reason.CONTAINER_NOT_STARTED, text)


def find_next_look(waiting: Waiting, seconds: float) -> float | None:
    """Return the seconds until the next look at a pod, which has waited for ``seconds``.

    Returns None if a watch reports the end of the wait.
    """
    if waiting.reason not in (Reason.PENDING, Reason.RETRYING, Reason.POD_REFUSED, Reason.CONTAINER_NOT_STARTED):
        return None
    return min(max(seconds, FIRST_LOOK_SECONDS), LAST_LOOK_SECONDS)


def _find_waiting(pod: Object) -> list[tuple[str, Object]]:
    """Find the containers that wait, the init containers first."""
    status = pod["status"]
    entries = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = [(entry["name"], (entry.get("state") or {}).get("waiting")) for entry in entries]
    return [(name, waiting) for name, waiting in states if waiting is not None]
