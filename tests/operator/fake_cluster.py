"""Objects as the API server has them, and a fake cluster in which plans take effect."""

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.timestamps import format_timestamp
from finetune_operator.kube.kinds import ATTEMPT_LABEL, ROLE_LABEL
from finetune_operator.policies.batch_job import may_still_run
from finetune_operator.policies.disruption import is_replaced
from finetune_operator.policies.pod_state import has_ended, read_state
from finetune_operator.reconcile.finetunejob.model import Observed, Plan
from finetune_operator.reconcile.finetunejob.plan import make_plan
from finetune_operator.resources.names import TRAINER
from finetune_operator.settings import Settings
from tools.testing.operator_messages import SPEC

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
SETTINGS = Settings(trainer_image="trainer:1", operator_image="operator:1", report_url="http://operator:8080")


def finetune_job(
    spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, generation: int = 1
) -> dict[str, Any]:
    """Return a FineTuneJob named ns/a."""
    meta = {"namespace": "ns", "name": "a", "uid": "11111111-2222", "generation": generation, "resourceVersion": "1"}
    return {"metadata": meta, "spec": SPEC if spec is None else spec, "status": status or {}}


def pod(
    state: dict[str, Any] | None = None,
    *,
    phase: str = "Pending",
    conditions: list[dict[str, str]] | None = None,
    deleted: bool = False,
    status: dict[str, Any] | None = None,
    sidecar: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a pod with our container in this state, after a sidecar that somebody injected if its state is given."""
    meta = {"name": "a-pod", "uid": "pod-uid", "creationTimestamp": format_timestamp(NOW)}
    if deleted:
        meta["deletionTimestamp"] = format_timestamp(NOW)
    statuses = [{"name": "istio-proxy", "state": sidecar}] if sidecar is not None else []
    statuses += [{"name": "trainer", "state": state}] if state is not None else []
    return {
        "metadata": meta,
        "spec": {"nodeName": "node-1"},
        "status": {
            "phase": phase,
            "conditions": conditions or [],
            "containerStatuses": statuses,
            **(status or {}),
        },
    }


def running(sidecar: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a pod whose container runs."""
    return pod({"running": {}}, phase="Running", sidecar=sidecar)


def terminated(
    exit_code: int,
    message: dict[str, Any] | str = "",
    *,
    reason: str = "",
    deleted: bool = False,
    at: datetime = NOW,
    sidecar: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a pod whose container has ended; a sidecar that has not ended keeps the pod running."""
    text = message if isinstance(message, str) else json.dumps(message)
    state = {
        "exitCode": exit_code,
        "message": text,
        "reason": reason or ("Error" if exit_code else "Completed"),
        "finishedAt": format_timestamp(at),
    }
    phase = "Running" if sidecar and "terminated" not in sidecar else "Failed" if exit_code else "Succeeded"
    return pod({"terminated": state}, phase=phase, deleted=deleted, sidecar=sidecar)


def disrupted(exit_code: int = 143, message: dict[str, Any] | str = "", *, deleted: bool = True) -> dict[str, Any]:
    """Return a pod that was evicted, and whose container ended in its grace period."""
    pod = terminated(exit_code, message, deleted=deleted)
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "a drain"}
    pod["status"]["conditions"] = [condition]
    return pod


class FakeCluster:
    """Jobs and pods around one FineTuneJob; ``settle`` makes passes until one changes nothing.

    It is the Job controller too: a Job has failed or is complete when its pod has, and has failed when that is gone. A
    trainer's pod that is taken away is replaced: the next one that is set is another pod of the same Job.
    """

    def __init__(self, spec: dict[str, Any] | None = None) -> None:
        """Begin with a FineTuneJob that no pass has seen."""
        self.resource = finetune_job(spec)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.earlier_pods: dict[str, list[dict[str, Any]]] = {}
        self.created: list[str] = []
        self.pods_made = 0
        self.events: list[str] = []
        self.told: dict[tuple[str, str], str] = {}
        self.is_deleted = False
        self.now = NOW
        self.requeue_after: float | None = None
        self.settings = SETTINGS
        self.warnings: dict[str, str] = {}

    def observed(self) -> Observed:
        """Return what a pass would see, once the Job controller has seen the pods."""
        self.control_jobs()
        names = {**self.pods, **self.earlier_pods}
        pods = {
            name: [*self.earlier_pods.get(name, []), *([self.pods[name]] if name in self.pods else [])]
            for name in names
        }
        return Observed(self.resource, list(self.jobs.values()), pods, warnings=self.warnings)

    def apply(self, decided: Plan, *, only_children: bool = False) -> bool:
        """Let the plan take effect; return whether it changed anything.

        ``only_children``: the operator dies before the status write.
        """
        if decided.expires:
            self.tell(decided)
            self.is_deleted = True
            return False
        if decided.finalizers is not None:
            if "deletionTimestamp" in self.resource["metadata"]:
                self.tell(decided)
            self.resource = {
                **self.resource,
                "metadata": {**self.resource["metadata"], "finalizers": decided.finalizers},
            }
            return not self.is_gone
        for pod_name in decided.end_pods:
            assert pod_name in self.pods.values()
            pod_name["spec"]["activeDeadlineSeconds"] = 1
            pod_name["status"] |= {"phase": "Failed", "reason": "DeadlineExceeded"}
        for job in decided.delete:
            name = job["metadata"]["name"]
            role = self.jobs.pop(name)["metadata"]["labels"][ROLE_LABEL]
            if name in self.pods and "running" in read_state(self.pods[name], role):
                self.pods[name]["metadata"]["deletionTimestamp"] = format_timestamp(self.now)
            else:
                self.pods.pop(name, None)
            self.earlier_pods.pop(name, None)
        if decided.create is not None:
            name = decided.create["metadata"]["name"]
            assert name not in self.jobs, "the API server would refuse it"
            meta = {**decided.create["metadata"], "uid": name, "creationTimestamp": format_timestamp(self.now)}
            self.jobs[name] = {"metadata": meta, "spec": {}, "status": {}}
            self.created.append(name)
        changed = bool(
            decided.end_pods or decided.delete or decided.create or decided.status != self.resource["status"]
        )
        if not only_children:
            self.resource = {**self.resource, "status": decided.status}
            self.tell(decided)
        return changed

    @property
    def is_gone(self) -> bool:
        """Tell whether the FineTuneJob was deleted, and nothing keeps it."""
        meta = self.resource["metadata"]
        return "deletionTimestamp" in meta and not meta.get("finalizers")

    def delete(self, *finalizers: str) -> None:
        """Delete the FineTuneJob as a user does; the garbage collector adds its finalizers."""
        meta = self.resource["metadata"]
        before = meta.get("finalizers", [])
        changed = {"deletionTimestamp": format_timestamp(self.now), "finalizers": [*before, *finalizers]}
        self.resource = {**self.resource, "metadata": {**meta, **changed}}

    def collect_garbage(self) -> None:
        """Let the garbage collector finish: it removes its finalizers."""
        meta = self.resource["metadata"]
        finalizers = [name for name in meta["finalizers"] if "/" in name]
        self.resource = {**self.resource, "metadata": {**meta, "finalizers": finalizers}}

    def tell(self, decided: Plan) -> None:
        """Keep the events of a plan; one of the same reason and key is there already."""
        for event in decided.events:
            if (event.reason, event.key) not in self.told:
                self.told[event.reason, event.key] = event.note
                self.events.append(event.reason)

    def control_jobs(self) -> None:
        """Let the Job controller end the Jobs whose pods have ended, except suspended ones."""
        for name, job in self.jobs.items():
            phase = self.pods[name]["status"]["phase"] if name in self.pods else None
            if phase == "Failed" and self._is_replaced(name):
                continue
            if phase in ("Succeeded", "Failed") and not job["spec"].get("suspend"):
                self.end_job(name, "Complete" if phase == "Succeeded" else "Failed")

    def _is_replaced(self, name: str) -> bool:
        """Tell whether the Job controller replaces the pod of a Job, which has failed."""
        role = self.jobs[name]["metadata"]["labels"][ROLE_LABEL]
        return role == TRAINER and is_replaced(self.pods[name], role)

    def end_job(self, name: str, kind: str) -> None:
        """End a Job for good, with a condition of this type."""
        condition = {"type": kind, "status": "True", "message": "it has ended"}
        self.jobs[name]["status"] = {"conditions": [condition]}

    def plan(self) -> Plan:
        """Return what a pass decides now."""
        return make_plan(self.observed(), self.now, self.settings)

    def settle(self, *, dies: bool = False) -> None:
        """Make passes; with ``dies`` the first one is interrupted before its status write."""
        for number in range(10):
            decided = self.plan()
            self.requeue_after = decided.requeue_after
            if not self.apply(decided, only_children=dies and number == 0) and not (dies and number == 0):
                return
        raise AssertionError("ten passes, and still something changes")

    def job_of(self, role: str) -> str | None:
        """Return the name of the newest Job of a role."""
        names = [
            (int(job["metadata"]["labels"][ATTEMPT_LABEL]), name)
            for name, job in self.jobs.items()
            if job["metadata"]["labels"][ROLE_LABEL] == role
        ]
        return max(names)[1] if names else None

    def set_spec(self, **fields: Any) -> None:
        """Change fields of the spec as a user does."""
        self.resource = {**self.resource, "spec": {**self.resource["spec"], **fields}}

    def stop_pods(self, ending: dict[str, Any]) -> None:
        """End the pods whose Jobs are deleted in this way."""
        for name in [name for name in self.pods if name not in self.jobs]:
            role = self.pods[name]["metadata"]["labels"][ROLE_LABEL]
            if not has_ended(self.pods[name], role):
                identity = {key: self.pods[name]["metadata"][key] for key in ("uid", "creationTimestamp")}
                self.pods[name] = self._adapt(copy.deepcopy(ending), role)
                self.pods[name]["metadata"] |= identity

    def may_have_pod(self, name: str) -> bool:
        """Tell whether the pod of a Job may change: neither has ended, and the Job is not suspended."""
        job = self.jobs[name]
        ended = name in self.pods and has_ended(self.pods[name], job["metadata"]["labels"][ROLE_LABEL])
        replaced = ended and self._is_replaced(name)
        return (replaced or not ended) and may_still_run(job) and not job["spec"].get("suspend")

    def lose_pod(self, name: str) -> None:
        """Delete the pod of a Job by force, which the Job controller counts as a failure."""
        if name in self.pods and may_still_run(self.jobs[name]) and not self._is_replaced(name):
            self.end_job(name, "Failed")
        self.pods.pop(name, None)

    def set_pod(self, pod: dict[str, Any], name: str | None = None) -> None:
        """Replace the pod of this Job, or of the newest one."""
        roles = ("clean-up", "merge", "trainer", "preflight")
        name = name or next(filter(None, map(self.job_of, roles)), None)
        assert name is not None
        role = self.jobs[name]["metadata"]["labels"][ROLE_LABEL]
        before = self.pods.get(name)
        created = format_timestamp(self.now)
        if before is None or has_ended(before, role):
            self.pods_made += 1
        else:
            created = before["metadata"]["creationTimestamp"]
        if before is not None and has_ended(before, role) and "deletionTimestamp" not in before["metadata"]:
            self.earlier_pods.setdefault(name, []).append(before)
        pod["metadata"] |= {"uid": f"pod-{self.pods_made}", "creationTimestamp": created}
        self.pods[name] = self._adapt(pod, role)

    def play(self, pod: dict[str, Any]) -> None:
        """Replace the newest pod, and make the operator's passes."""
        self.set_pod(pod)
        self.settle()

    def _adapt(self, pod: dict[str, Any], role: str) -> dict[str, Any]:
        """Make a pod one of this role."""
        for entry in pod["status"]["containerStatuses"]:
            if entry["name"] == "trainer":
                entry["name"] = role
        pod["metadata"]["labels"] = {ROLE_LABEL: role}
        return pod

    def suspend(self, name: str, manager: str, *, keeps_pod: bool = False) -> None:
        """Suspend a Job as a user does; its pod is deleted, unless that is still seen."""
        entry = {"manager": manager, "fieldsV1": {"f:spec": {"f:suspend": {}}}}
        self.jobs[name] = {
            **self.jobs[name],
            "metadata": {**self.jobs[name]["metadata"], "managedFields": [entry]},
            "spec": {"suspend": True},
        }
        if not keeps_pod:
            self.pods.pop(name, None)

    def resume(self, name: str) -> None:
        """Resume a Job as a user does."""
        self.jobs[name] = {**self.jobs[name], "spec": {}}

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        self.now += timedelta(seconds=seconds)

    def message(self, kind: str) -> str:
        """Return the message of a condition."""
        return next(str(item["message"]) for item in self.resource["status"]["conditions"] if item["type"] == kind)

    def condition(self, kind: str) -> tuple[str, str] | None:
        """Return the status and reason of a condition."""
        for item in self.resource["status"].get("conditions", []):
            if item["type"] == kind:
                return item["status"], item["reason"]
        return None
