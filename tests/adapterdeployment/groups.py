"""Serving groups in every state, as a pass observes them."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from finetune_api.messages import AgentAdapter, AgentReport, DesiredState
from finetune_api.reasons import Reason
from finetune_engines import ENGINES
from finetune_operator.kube.kinds import DEPLOYMENT, Object
from finetune_operator.kube.workloads import WorkloadRef
from finetune_operator.reconcile.adapterdeployment.model import Observed
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.adapterdeployment.status import build_updates
from finetune_operator.resources.desired_state import build_config_map, read_config_map
from finetune_operator.resources.injection import AgentParameters, build_injection
from finetune_operator.settings import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SETTINGS = Settings(trainer_image="trainer:1", operator_image="operator:1", report_url="http://operator:8080")
NAMESPACE, NAME = "team", "web"
TARGET = WorkloadRef(DEPLOYMENT, NAME)
V1, V2, V3 = ("sha256:" + digit * 64 for digit in "123")


def uri(digest: str) -> str:
    return f"s3://bucket/{digest[7]}/adapter"


def deployment(replicas: int = 3, args: list[str] | None = None, **fields: Any) -> Object:
    """Return a Deployment whose roll-out is complete."""
    container = {
        "name": "vllm",
        "image": "vllm",
        "args": args or ["--model=/m", "--enable-lora", "--max-lora-rank=16", "--max-cpu-loras=8"],
    }
    return {
        "kind": "Deployment",
        "metadata": {
            "namespace": NAMESPACE,
            "name": NAME,
            "uid": "d-1",
            "generation": 1,
            "resourceVersion": "1",
            "managedFields": [],
            **fields,
        },
        "spec": {"replicas": replicas, "template": {"metadata": {}, "spec": {"containers": [container]}}},
        "status": {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas},
    }


def statefulset(replicas: int = 3, strategy: Object | None = None, /, **status: Any) -> Object:
    """A StatefulSet whose pods all are of its newest template."""
    plain = deployment(replicas)
    spec = {**plain["spec"], "updateStrategy": strategy or {"type": "RollingUpdate"}}
    return {**plain, "kind": "StatefulSet", "spec": spec, "status": {**plain["status"], **status}}


def adapter(
    name: str = "bot",
    digest: str | None = V1,
    created: str = "2026-01-01T00:00:00Z",
    status: Object | None = None,
    **spec: Any,
) -> Object:
    """Return an AdapterDeployment for a digest in S3, or (None) for the FineTuneJob ``job``."""
    source: Object = {"fineTuneJobRef": {"name": "job"}} if digest is None else {"uri": uri(digest), "digest": digest}
    return {
        "metadata": {
            "namespace": NAMESPACE,
            "name": name,
            "uid": f"u-{name}",
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": created,
        },
        "spec": {"adapter": source, "servedName": f"{name}-name", "target": {"deploymentRef": {"name": NAME}}, **spec},
        **({"status": status} if status else {}),
    }


def job(ready: bool = True, stalled: bool = False, uid: str = "j-1", **adapter_fields: Any) -> Object:
    """Return the FineTuneJob ``job``."""
    conditions = [
        {"type": "Ready", "status": "True" if ready else "False", "reason": "AdapterVerified", "message": "done"}
    ]
    if stalled:
        conditions.append({"type": "Stalled", "status": "True", "reason": "DatasetInvalid", "message": "row 3"})
    status: Object = {
        "conditions": conditions,
        "phase": "Succeeded" if ready else "Training",
        "progress": {"percent": 40},
    }
    if ready:
        status["adapter"] = {
            "uri": uri(V1),
            "digest": V1,
            "sizeBytes": 1,
            "baseModel": "m",
            "peftType": "LORA",
            "rank": 8,
            "servableBy": ["vllm"],
            **adapter_fields,
        }
    output = {
        "s3": {"bucket": "bucket", "endpoint": "http://s3:9000", "region": "eu"},
        "secretRef": {"name": "s3-keys"},
    }
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "s3://bucket/data.jsonl"}, "output": output}
    return {"metadata": {"namespace": NAMESPACE, "name": "job", "uid": uid}, "spec": spec, "status": status}


def pod(name: str, ready: bool = True) -> Object:
    return {
        "metadata": {"namespace": NAMESPACE, "name": name, "uid": f"p-{name}", "annotations": {}},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def report(
    assigned: str,
    active: str | None,
    state: str = "Active",
    reason: Reason | None = None,
    message: str = "",
    name: str = "bot",
    proof: str = "",
) -> AgentReport:
    """Return an agent's report of one adapter."""
    entry = AgentAdapter(
        deployment=name,
        served_name=f"{name}-name",
        digest=assigned,
        active_digest=active,
        state=state,
        reason=reason,
        message=message,
        proof=proof,
    )
    return AgentReport(engine_ready=True, ready=True, adapters=[entry])


def group(*adapters: Object, **fields: Any) -> Observed:
    """Return a group with a Deployment of three pods."""
    pods = tuple(pod(name) for name in ("web-a", "web-b", "web-c"))
    plain = Observed(NAMESPACE, TARGET, deployment(), tuple(adapters), pods=pods)
    return replace(plain, **fields)


def make_pass(observed: Observed, now: datetime = NOW) -> Observed:
    """Make a pass, and return the group after its ConfigMap and its statuses were written."""
    plan = make_plan(observed, now, SETTINGS)
    statuses = [update.status for update in build_updates(observed, plan, None, now)]
    resources = tuple(
        {**resource, "status": status} for resource, status in zip(observed.resources, statuses, strict=True)
    )
    return replace(observed, config_map=plan.config_map or observed.config_map, resources=resources)


def edit(observed: Observed, **spec: Any) -> Observed:
    """Edit the spec of the only AdapterDeployment; a field that is None is removed."""
    (resource,) = observed.resources
    meta = {**resource["metadata"], "generation": resource["metadata"]["generation"] + 1}
    after = {name: value for name, value in {**resource["spec"], **spec}.items() if value is not None}
    return replace(observed, resources=({**resource, "metadata": meta, "spec": after},))


def build_source(digest: str) -> Object:
    """Return the spec.adapter that asks for a digest."""
    return {"uri": uri(digest), "digest": digest}


def add_reports(observed: Observed, pods: str, assigned: str, active: str | None, **fields: Any) -> Observed:
    """Let the agents of pods (``abc`` are web-a, web-b and web-c) report."""
    reports = {f"web-{pod}": report(assigned, active, **fields) for pod in pods}
    return replace(observed, agent_reports={**observed.agent_reports, **reports})


def read_entry(observed: Observed) -> tuple[str, str | None, list[str] | None]:
    """Read from the ConfigMap the version, the version before it, and the pods that are to take it."""
    (entry,) = read_config_map(observed.config_map).adapters
    return entry.version.digest, entry.previous.digest if entry.previous else None, entry.pods


def read_conditions(observed: Observed) -> dict[str, tuple[str, str]]:
    """Read the conditions of the only AdapterDeployment."""
    (resource,) = observed.resources
    return {item["type"]: (item["status"], item["reason"]) for item in resource["status"]["conditions"]}


def config_map(state: DesiredState) -> Object:
    """Return the ConfigMap as an earlier pass wrote it."""
    return build_config_map(NAMESPACE, NAME, state)


def injected(*secrets: str, image: str = "operator:1", **fields: Any) -> Object:
    """Return the Deployment with an agent that an operator of this image put there; all its pods have it."""
    plain = deployment(**fields)
    agent = AgentParameters("vllm", ENGINES["vllm"], secrets, image, "IfNotPresent", "http://operator:8080")
    body = build_injection(plain, agent)
    template, applied = plain["spec"]["template"], body["spec"]["template"]
    template["metadata"] = applied["metadata"]
    template["spec"] |= {name: applied["spec"][name] for name in ("initContainers", "volumes")}
    template["spec"]["containers"][0] |= applied["spec"]["containers"][0]
    plain["metadata"] |= {name: body["metadata"][name] for name in ("labels", "annotations")}
    owned: Object = {"f:initContainers": {'k:{"name":"finetune-agent"}': {"f:image": {}}}}
    plain["metadata"]["managedFields"] = [
        {
            "manager": "finetune-operator",
            "operation": "Apply",
            "fieldsV1": {"f:spec": {"f:template": {"f:spec": owned}}},
        }
    ]
    return plain
