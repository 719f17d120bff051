"""Say why a pod does not run yet, in the words of whoever keeps it from running. Pure."""

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
"""Reasons of a waiting container for which nobody has refused anything."""
SILENT_SECONDS = 120.0
"""For how long a pod may be starting without a word."""
FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 3.0, 60.0
"""How often events are looked up that say why a pod does not start: at first, and at last."""
PULL_REMEDY = (
    "Check the image's name, whether the node reaches the registry, and whether spec.podTemplate.imagePullSecrets "
    "names the Secret for it."
)
START_REMEDY = "Create what it names in this namespace, or correct spec.podTemplate."
SCHEDULE_REMEDY = "The pod starts when a node fits: compare what it asks for with the nodes."


@dataclass(frozen=True)
class Waiting:
    """The pod does not run yet.

    ``is_failing`` says that a container on a node fails to start: while it waits, the pod holds a GPU for nothing.
    """

    reason: Reason
    message: str
    is_failing: bool = False


def explain_missing_pod(refusal: str | None) -> Waiting:
    """Say why a Job has no pod; ``refusal`` is what the Job controller was told when it last tried, if it was."""
    if refusal is None:
        return Waiting(Reason.PENDING, "The pod is starting.")
    words = truncate(refusal.removeprefix("Error creating: "), OUTPUT_MESSAGE_CHARACTERS)
    return Waiting(Reason.POD_REFUSED, f"The cluster refuses the pod: {end_sentence(words)} {find_remedy(words)}")


def explain_suspension(batch_job: Object) -> Waiting:
    """Say who suspended a Job: Kueue or a person. A pod of it follows when it is resumed, so its run is not over."""
    text = (
        f"The Job {batch_job['metadata']['name']} is suspended by {find_suspender(batch_job)}, and goes on when its "
        "spec.suspend is false again. No other pod takes its place."
    )
    return Waiting(Reason.SUSPENDED, text)


def explain_unstarted_pod(pod: Object, warning: str | None) -> Waiting:
    """Say why a container of a pod does not run yet; ``warning`` is what the newest Event warned of, if one did."""
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
    """Say something of a pod that has not started for so many seconds, though nobody says why."""
    if waiting.reason is not Reason.PENDING or seconds < SILENT_SECONDS:
        return waiting
    text = (
        f"The pod of Job {batch_job} has not started for more than {SILENT_SECONDS:.0f} s, and nobody has said why. It "
        f"may still download its image. See kubectl describe pods --selector {JOB_NAME_LABEL}={batch_job}"
    )
    return Waiting(Reason.CONTAINER_NOT_STARTED, text)


def find_next_look(waiting: Waiting, seconds: float) -> float | None:
    """Find when to look again at a pod that has waited for so many seconds; None if a watch tells what happens."""
    if waiting.reason not in (Reason.PENDING, Reason.POD_REFUSED, Reason.CONTAINER_NOT_STARTED):
        return None
    return min(max(seconds, FIRST_LOOK_SECONDS), LAST_LOOK_SECONDS)


def _find_waiting(pod: Object) -> list[tuple[str, Object]]:
    """Find the containers that wait, the init containers first."""
    status = pod["status"]
    entries = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = [(entry["name"], (entry.get("state") or {}).get("waiting")) for entry in entries]
    return [(name, waiting) for name, waiting in states if waiting is not None]
