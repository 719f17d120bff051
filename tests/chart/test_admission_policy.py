"""What a stolen token of the operator can write: the chart's admission policies on a real API server."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from devcluster.cluster import Cluster
from finetune_api.finetunejob import FineTuneJob
from finetune_engines import ENGINES
from finetune_operator.policies.deletion import FINALIZER
from finetune_operator.resources.injection import AgentParameters, build_injection
from finetune_operator.resources.jobs import (
    ResolvedModel,
    build_clean_up_job,
    build_preflight_job,
    build_trainer_job,
)
from finetune_operator.resources.removal import build_removal
from finetune_operator.settings import Settings
from tests.chart.helm import NAMESPACE, Object, engine, of_kind, operator_environment, render
from tests.operator.locked_down import POD_TEMPLATE
from tools.testing.crds import install_crds
from tools.testing.kubernetes_api import GROUP, PLURAL, VERSION, Api
from tools.testing.operator_messages import SPEC
from tools.testing.waiting import until

pytestmark = pytest.mark.cluster
KINDS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:finetune-operator"
OWNER: Object = {
    "metadata": {"name": "a", "namespace": "default", "uid": "11111111-1111-1111-1111-111111111111"},
    "spec": SPEC,
}


@pytest.fixture(scope="module")
def settings(empty_cluster: Cluster, namespace: str) -> Iterator[Settings]:
    """The chart's policies and rights are in force; yields the settings that the chart gives the operator."""
    objects = render()
    text = yaml.safe_dump_all(of_kind(objects, *KINDS, *POLICIES))
    empty_cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    yield Settings.of(operator_environment(objects))
    empty_cluster.kubectl("delete", "-f", "-", stdin=text)


@pytest.fixture(scope="module")
def thief(empty_cluster: Cluster, settings: Settings) -> Api:
    """The API for somebody who has the operator's token, once the policies are in force."""
    api = Api(empty_cluster.kubeconfig, "default")
    api.client.set_default_header("Impersonate-User", ACCOUNT)
    stranger = {
        "metadata": {"name": "x"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}},
    }
    until("the policies are in force", lambda: refusal(api, stranger))
    return api


def refusal(api: Api, job: Object) -> str:
    """Why the Job cannot be created; empty if it can."""
    try:
        api.batch.create_namespaced_job("default", job, dry_run="All")
    except ApiException as error:
        assert error.status in (403, 422), error.body
        return str(error.body)
    return ""


def trainer(settings: Settings, template: Object | None = None) -> Object:
    resource = {**OWNER, "spec": {**SPEC, "podTemplate": template or {}}}
    return build_trainer_job(resource, FineTuneJob.of(resource), 1, ResolvedModel(), settings, [], ["node-1"])


@pytest.mark.parametrize("template", [{}, POD_TEMPLATE, {"securityContext": {}}], ids=["plain", "full", "any user"])
def test_the_operators_own_jobs_can_be_created(thief: Api, settings: Settings, template: Object) -> None:
    resource = {**OWNER, "spec": {**SPEC, "podTemplate": template}}
    assert refusal(thief, trainer(settings, template)) == ""
    assert refusal(thief, build_preflight_job(resource, FineTuneJob.of(resource), 1, settings)) == ""
    assert refusal(thief, build_clean_up_job(resource, FineTuneJob.of(resource), 1, settings)) == ""


POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
CHANGES: list[tuple[str, Any, str]] = [
    ("metadata.ownerReferences", [], "the Job belongs to no FineTuneJob"),
    ("metadata.ownerReferences.0.kind", "Deployment", "the Job belongs to no FineTuneJob"),
    ("metadata.labels", {"finetune-operator.io/role": "x"}, "the pod must have one container, named by the Job's role"),
    (f"{POD}.initContainers", [{"name": "x", "image": "x"}], "the pod must have one container"),
    (f"{POD}.automountServiceAccountToken", True, "the pod mounts a token"),
    (f"{POD}.serviceAccountName", "admin", "is not in trainer.podPolicy.serviceAccountNames"),
    (f"{POD}.serviceAccountName", "default-admin", "is not in trainer.podPolicy.serviceAccountNames"),
    (f"{POD}.volumes.0", {"name": "finetune-tmp", "hostPath": {"path": "/"}}, "a path of the node"),
    (f"{POD}.volumes.0", {"name": "finetune-tmp", "nfs": {"server": "x", "path": "/"}}, "a volume is of a kind"),
    (f"{POD}.hostNetwork", True, "the pod has a namespace of the node"),
    (f"{POD}.hostPID", True, "the pod has a namespace of the node"),
    (f"{POD}.securityContext.runAsUser", 0, "the pod may run as root"),
    (f"{POD}.securityContext.runAsNonRoot", False, "the pod may run as root"),
    (f"{CONTAINER}.securityContext.runAsUser", 0, "the pod may run as root"),
    (f"{CONTAINER}.securityContext", {"privileged": True}, "the container is privileged"),
    (f"{CONTAINER}.securityContext", {}, "the container may gain privileges"),
    (f"{CONTAINER}.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}, "has capabilities"),
    (f"{POD}.securityContext.seccompProfile.type", "Unconfined", "the pod has no seccomp profile"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), CHANGES, ids=[f"{path} {value}"[:80] for path, value, _ in CHANGES]
)
def test_no_other_job_can_be_created(thief: Api, settings: Settings, path: str, value: Any, message: str) -> None:
    job = copy.deepcopy(trainer(settings))
    *parents, last = path.split(".")
    node: Any = job
    for parent in parents:
        node = node[int(parent)] if parent.isdigit() else node[parent]
    node[int(last) if last.isdigit() else last] = value
    assert message in refusal(thief, job)


def test_only_trainers_have_an_image_of_their_own(thief: Api, settings: Settings) -> None:
    for build in (build_preflight_job, build_clean_up_job):
        job = build(OWNER, FineTuneJob.of(OWNER), 1, settings)
        job["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
        assert "only trainer pods may have an image of their own" in refusal(thief, job)


def test_of_a_fine_tune_job_only_our_finalizer_changes(empty_cluster: Cluster, thief: Api) -> None:
    install_crds(empty_cluster)
    admin = Api(empty_cluster.kubeconfig, "default")
    admin.create_job("theirs")

    def patched(change: Object, api: Api = thief) -> str:
        try:
            api.custom.patch_namespaced_custom_object(GROUP, VERSION, "default", PLURAL, "theirs", change)
        except ApiException as error:
            return str(error.body)
        return ""

    assert patched({"metadata": {"finalizers": ["example.com/other"]}}, admin) == ""
    assert patched({"metadata": {"finalizers": ["example.com/other", FINALIZER]}}) == ""
    assert "changes no finalizer of others" in patched({"metadata": {"finalizers": [FINALIZER]}})
    assert "but its status and its finalizer" in patched({"spec": {"suspend": True}})
    assert "but its status and its finalizer" in patched({"metadata": {"labels": {"a": "b"}}})
    assert patched({"metadata": {"finalizers": ["example.com/other"]}}) == ""
    assert patched({"metadata": {"finalizers": None}}, admin) == ""
    empty_cluster.kubectl("delete", "-f", "crds")


def test_others_are_not_concerned(empty_cluster: Cluster, thief: Api) -> None:
    stranger = {
        "metadata": {"name": "x"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}},
    }
    assert refusal(Api(empty_cluster.kubeconfig, "default"), stranger) == ""


def test_pods_and_config_maps_of_others_stay_as_they_are(empty_cluster: Cluster, thief: Api) -> None:
    admin = Api(empty_cluster.kubeconfig, "default")
    for name in ("theirs", "finetune-adapters-vllm"):
        admin.core.create_namespaced_config_map("default", {"metadata": {"name": name}, "data": {"a": "b"}})
    pod = {"metadata": {"name": "theirs"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    admin.core.create_namespaced_pod("default", pod)
    with pytest.raises(ApiException, match="only ConfigMaps of its agents"):
        thief.core.patch_namespaced_config_map("theirs", "default", {"data": {"a": "c"}})
    with pytest.raises(ApiException, match="only ConfigMaps of its agents"):
        thief.core.delete_namespaced_config_map("theirs", "default")
    thief.core.patch_namespaced_config_map("finetune-adapters-vllm", "default", {"data": {"a": "c"}})
    thief.core.delete_namespaced_config_map("finetune-adapters-vllm", "default")
    with pytest.raises(ApiException, match="changes no image of a pod"):
        thief.core.patch_namespaced_pod("theirs", "default", {"spec": {"containers": [{"name": "x", "image": "evil"}]}})
    thief.core.patch_namespaced_pod("theirs", "default", {"metadata": {"annotations": {"a": "b"}}})
    thief.core.patch_namespaced_pod("theirs", "default", {"spec": {"activeDeadlineSeconds": 1}})


def test_of_a_deployment_only_the_agent_changes(empty_cluster: Cluster, thief: Api, settings: Settings) -> None:
    admin = Api(empty_cluster.kubeconfig, "default")
    deployment: Any = engine(
        containers=[{"name": "vllm", "image": "vllm"}], initContainers=[{"name": "init", "image": "init"}]
    )
    live = admin.plain(client.AppsV1Api(admin.client).create_namespaced_deployment("default", deployment))
    parameters = AgentParameters(
        "vllm", ENGINES["vllm"], ("s3",), settings.operator_image, "Always", settings.report_url, settings.pods
    )
    injection = {"apiVersion": "apps/v1", "kind": "Deployment", **build_injection(live, parameters)}

    def apply(body: Object) -> None:
        thief.client.call_api(
            *thief.client.param_serialize(
                "PATCH",
                "/apis/apps/v1/namespaces/default/deployments/vllm",
                query_params=[("fieldManager", "finetune-operator")],
                header_params={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
            )
        ).read()

    def patched(change: Object) -> str:
        try:
            client.AppsV1Api(thief.client).patch_namespaced_deployment("vllm", "default", change)
        except ApiException as error:
            return str(error.body)
        return ""

    def pod(**fields: Any) -> Object:
        return {"spec": {"template": {"spec": fields}}}

    apply(injection)
    evil = {"name": "x", "image": "evil"}
    assert "changes no container" in patched(pod(containers=[{"name": "vllm", "image": "evil"}]))
    assert "changes no container" in patched(pod(containers=[{"name": "vllm", "command": ["sh"]}]))
    assert "changes no container" in patched(pod(containers=[evil]))
    assert "adds no init container" in patched(pod(initContainers=[evil]))
    assert "adds no init container" in patched(pod(initContainers=[{"name": "init", "image": "evil"}]))
    agent = {"name": "finetune-agent"}
    assert "another image" in patched(pod(initContainers=[{**agent, "image": "evil"}]))
    assert "another command" in patched(pod(initContainers=[{**agent, "command": ["sh"]}]))
    privileged = {"privileged": True, "allowPrivilegeEscalation": None}
    assert "more privileges" in patched(pod(initContainers=[{**agent, "securityContext": privileged}]))
    assert "adds no volumes" in patched(pod(volumes=[{"name": "x", "secret": {"secretName": "theirs"}}]))
    assert "adds no volumes" in patched(pod(volumes=[{"name": "finetune-x", "hostPath": {"path": "/"}}]))
    assert "identity" in patched(pod(serviceAccountName="admin"))
    assert "identity" in patched(pod(hostNetwork=True))
    assert "identity" in patched({"spec": {"replicas": 0}})
    apply({"apiVersion": "apps/v1", "kind": "Deployment", **build_removal(live)})
    left = admin.plain(client.AppsV1Api(admin.client).read_namespaced_deployment("vllm", "default"))
    assert [each["name"] for each in left["spec"]["template"]["spec"]["initContainers"]] == ["init"]


def test_the_policies_of_a_wider_chart_are_valid_too(empty_cluster: Cluster, namespace: str) -> None:
    values = {
        "trainer.podPolicy.securityStandard": "privileged",
        "trainer.podPolicy.hostPaths": "{/data,/}",
        "trainer.podPolicy.serviceAccountNames": "{finetune-*,a.b}",
    }
    objects = of_kind(render(values), *POLICIES)
    (jobs,) = [item for item in of_kind(objects, POLICIES[0]) if item["metadata"]["name"].endswith("-jobs")]
    expressions = " ".join(rule["expression"] for rule in jobs["spec"]["validations"])
    assert "matches('^(default|finetune-.*|a[.]b)$')" in expressions
    assert "startsWith('/data/')" in expressions
    assert "hostNetwork" not in expressions
    empty_cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(objects))


def test_the_policies_can_be_left_out() -> None:
    assert of_kind(render({"admissionPolicy.enabled": "false"}), *POLICIES) == []
