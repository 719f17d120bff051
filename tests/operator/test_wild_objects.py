"""Objects that are valid and wild in content: the operator neither crashes nor tries for ever, and says why."""

import copy
import json
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from bench.operator.audit import of_operator, read_all
from devcluster.cluster import Cluster
from finetune_api.conditions import ConditionType
from finetune_api.reasons import EXIT_CODES
from finetune_operator.conditions import find_in
from finetune_operator.kube.kinds import ADAPTER_DEPLOYMENT, FINETUNE_JOB, JOB_LABEL, JOB_NAME_LABEL, ROLE_LABEL, Kind
from finetune_operator.policies.finished import find_expiry
from tests.operator.wild import ANYTHING, NASTY, draw, draw_objects
from tools.testing.fake_kubelet import Kubelet
from tools.testing.kubernetes_api import GROUP, VERSION, Api, Object
from tools.testing.operator_messages import MERGED, PREFLIGHT_PASSED, SUCCEEDED
from tools.testing.operator_process import Operator
from tools.testing.waiting import wait_for

pytestmark = pytest.mark.cluster
KINDS = (FINETUNE_JOB, ADAPTER_DEPLOYMENT)
THREADS = 8
QUIET_SECONDS = 4.0
MOST_STATUS_WRITES = 30
"""Of one object: a few for each run of a pod, which may end badly four times for preflight and trainer."""
MOST_STATUS_BYTES = 50_000
VLLM = ["vllm", "serve", "/model", "--enable-lora"]
COMMANDS: tuple[list[str], ...] = (
    [*VLLM, "--max-lora-rank", "64"],
    VLLM,
    VLLM[:3],
    ["sh", "-c", "exec vllm serve $MODEL"],
    [],
    ["--lora\0"],
)
RUNS = (*("passed",) * 20, *("failed",) * 10, *("killed",) * 5, *("mangled",) * 5, *("text",) * 5, "runs on")
MOST_BAD_RUNS = 4
GOOD: dict[str, Object] = {
    "preflight": PREFLIGHT_PASSED,
    "train": SUCCEEDED,
    "merge": MERGED,
    "clean-up": {"kind": "CleanUpResult", "reason": "Succeeded", "message": "7 objects were deleted."},
}


def choose_run(job: str) -> tuple[int, str] | None:
    """Choose by chance how the pod of a Job ends: exit code and termination message; None: it runs on."""
    rng = random.Random(job)
    match = re.fullmatch(".*-(preflight|train|merge|clean-up)-?([0-9]*)", job)
    assert match is not None
    good = GOOD[match[1]]
    kind = rng.choice(RUNS) if int(match[2] or 1) < MOST_BAD_RUNS else "passed"
    reason, code = rng.choice(list(EXIT_CODES.items()))
    match kind:
        case "passed":
            return 0, json.dumps(good)
        case "failed" if good is not PREFLIGHT_PASSED:
            return code, json.dumps({"kind": good["kind"], "reason": reason, "message": rng.choice(NASTY)})
        case "failed":
            problem = {"reason": reason, "field": rng.choice(NASTY)[:200], "message": rng.choice(NASTY)[:200]}
            return code, json.dumps({"kind": "PreflightResult", "problems": [problem] * 5})
        case "killed":
            return code, ""
        case "mangled":
            return rng.choice((0, code)), json.dumps(mangle(good, rng))[:4096]
        case "text":
            return rng.choice((0, code)), rng.choice(NASTY)[:4096]
    return None


def mangle(message: Object, rng: random.Random) -> Object:
    """Return a message of which some fields, or fields of its sections, have any value."""
    result = json.loads(json.dumps(message))
    for _ in range(3):
        section = rng.choice([result, *(part for part in result.values() if isinstance(part, dict) and part)])
        wild = rng.choice((*draw(ANYTHING, 30), float("nan"), float("inf")))
        section[rng.choice(list(section))] = copy.deepcopy(wild)
    return dict(result)


@pytest.mark.chaos("objects that are valid and wild in content, and pods that end in any way")
@pytest.mark.parametrize("number", [40, pytest.param(2000, marks=[pytest.mark.exhaustive, pytest.mark.timeout(7200)])])
def test_each_ends_in_a_condition_with_a_reason(cluster: Cluster, api: Api, operator: Operator, number: int) -> None:
    create_deployments(api)
    jobs = draw_objects("FineTuneJob", number)
    names = [job["metadata"]["name"] for job in jobs]
    choices: dict[tuple[str, ...], list[Any]] = {
        ("target", "deploymentRef", "name"): [f"vllm-{index}" for index in range(number // 20 + len(COMMANDS))],
        ("servedName",): [f"bot-{index}" for index in range(9)],
        ("adapter", "fineTuneJobRef", "name"): names,
    }
    adapter_deployments = draw_objects("AdapterDeployment", number, choices)
    with Kubelet(api, None, choose_run) as kubelet:
        assert create_all(api, FINETUNE_JOB, jobs) == []
        assert create_all(api, ADAPTER_DEPLOYMENT, adapter_deployments) == []
        await_quiet(operator, kubelet, within=30 + 3 * number)
    log = operator.log.read_text()
    assert "Traceback" not in log
    assert count_passes(operator, result="bug") == count_passes(operator, result="error") == 0, log[-4000:]
    assert "next try" not in log
    trained = {job["metadata"]["annotations"][JOB_LABEL] for job in list_trainer_jobs(api)}
    for kind in KINDS:
        for resource in list_all(api, kind):
            check_status(resource)
            if kind is FINETUNE_JOB and not is_true(resource, ConditionType.PREFLIGHT_PASSED):
                assert resource["metadata"]["name"] not in trained, resource
    quiet_at = datetime.now(UTC)
    log_file = cluster.state_dir / "logs" / "audit.log"
    writes = of_operator(read_all(log_file, api.namespace))
    of_status = Counter((write.resource, write.name) for write in writes if write.resource.endswith("/status"))
    assert [item for item in of_status.most_common() if item[1] > MOST_STATUS_WRITES] == []
    before = list_statuses(api)
    expiring = {job["metadata"]["name"] for job in list_all(api, FINETUNE_JOB) if expires_after(job, quiet_at)}
    operator.stop()
    operator.start()
    time.sleep(QUIET_SECONDS)
    after = list_statuses(api)
    changed = [
        f"{kind} {name}: {field}: {before[kind, name].get(field)} -> {status.get(field)}"
        for (kind, name), status in after.items()
        for field in status | before[kind, name]
        if before[kind, name].get(field) != status.get(field)
    ]
    assert not changed, "a restart changed:\n" + "\n".join(changed)
    new = of_operator(read_all(log_file, api.namespace))[len(writes) :]
    repeated = [
        f"{write.code}: {write.verb} {write.resource} {write.name}"
        for write in new
        if write.verb != "create" and (write.verb, write.name in expiring) != ("delete", True)
    ]
    assert not repeated, "a restart over all of this wrote:\n" + "\n".join(repeated)


def list_statuses(api: Api) -> dict[tuple[str, str], Object]:
    """List the statuses of all our objects, by kind and name."""
    resources = [resource for kind in KINDS for resource in list_all(api, kind)]
    return {(resource["kind"], resource["metadata"]["name"]): resource["status"] for resource in resources}


def check_status(resource: Object) -> None:
    """Check that the status tells a person about the newest generation, and is bounded."""
    status = resource.get("status", {})
    ready = find_in(resource, ConditionType.READY)
    assert ready is not None, resource
    assert ready["reason"] and ready["message"], resource
    assert status["observedGeneration"] == resource["metadata"]["generation"], resource
    assert len(json.dumps(status)) < MOST_STATUS_BYTES


def is_true(resource: Object, condition: ConditionType) -> bool:
    entry = find_in(resource, condition)
    return entry is not None and entry["status"] == "True"


def create_deployments(api: Api) -> None:
    """Create Deployments whose engine has good, wrong and no arguments."""
    for index, command in enumerate(COMMANDS):
        labels = {"app": f"vllm-{index}"}
        container = {"name": "vllm", "image": "vllm:1", "command": command[:1], "args": command[1:]}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": labels["app"]}, "spec": spec}
        api.custom.create_namespaced_custom_object("apps", "v1", api.namespace, "deployments", body)


def create_all(api: Api, kind: Kind, resources: Sequence[Object]) -> list[str]:
    """Create the objects; return what the API server says against any of them."""

    def create(resource: Object) -> str:
        try:
            api.custom.create_namespaced_custom_object(GROUP, VERSION, api.namespace, kind.plural, resource)
        except ApiException as error:
            return f"{json.loads(error.body or '{}').get('message')}: {json.dumps(resource)}"
        return ""

    with ThreadPoolExecutor(THREADS) as pool:
        return [refusal for refusal in pool.map(create, resources) if refusal]


def list_all(api: Api, kind: Kind) -> list[Object]:
    answer = api.custom.list_namespaced_custom_object(GROUP, VERSION, api.namespace, kind.plural)
    return list(answer["items"])


def expires_after(job: Object, moment: datetime) -> bool:
    """Return whether the job's time to live ends after a moment: then its deletion is no repeated write."""
    expiry = find_expiry(job)
    return expiry is not None and expiry > moment


def list_trainer_jobs(api: Api) -> list[Object]:
    jobs = api.batch.list_namespaced_job(api.namespace, label_selector=f"{ROLE_LABEL}=trainer").items
    return list(api.plain(jobs))


def await_quiet(operator: Operator, kubelet: Kubelet, within: float) -> None:
    """Wait until all pods that end have ended, and the operator has written nothing for some seconds."""

    def is_quiet() -> bool:
        before = count_writes(operator)
        time.sleep(QUIET_SECONDS)
        due = [pod for pod in kubelet.list_pods() if choose_run(pod["metadata"]["labels"][JOB_NAME_LABEL])]
        return not due and before == count_writes(operator)

    wait_for(is_quiet, within, "the operator to write nothing")


WRITES = ("create", "apply", "patch", "patch_status", "delete", "replace")


def count_writes(operator: Operator) -> float:
    return sum(operator.metric("finetune_operator_kube_requests_total", verb=verb) for verb in WRITES)


def count_passes(operator: Operator, result: str) -> float:
    return operator.metric("finetune_operator_reconciles_total", result=result)
