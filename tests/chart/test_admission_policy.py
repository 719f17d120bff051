"""What a stolen token of the operator can write: the chart's admission policies on a real API server."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from devcluster.cluster import Cluster
from finetune_api.adapterdeployment import Analysis
from finetune_api.finetunejob import FineTuneJob
from finetune_api.messages import DesiredAdapter, DesiredState, DesiredVersion
from finetune_engines import ENGINES
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Subject
from finetune_operator.policies.deletion import FINALIZER
from finetune_operator.resources.analysis_objects import build_job
from finetune_operator.resources.injection import AgentParameters, build_injection
from finetune_operator.resources.jobs import (
    ResolvedModel,
    build_clean_up_job,
    build_merge_job,
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
    """Install the chart's policies and rights; yield the settings that the chart gives the operator."""
    objects = render()
    text = yaml.safe_dump_all(of_kind(objects, *KINDS, *POLICIES))
    empty_cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    yield Settings.of(operator_environment(objects))
    empty_cluster.kubectl("delete", "-f", "-", stdin=text)


@pytest.fixture(scope="module")
def operator_api(empty_cluster: Cluster, settings: Settings) -> Api:
    """Return the API for somebody who has the operator's token, once the policies are in force."""
    api = Api(empty_cluster.kubeconfig, "default")
    api.client.set_default_header("Impersonate-User", ACCOUNT)
    stranger = {
        "metadata": {"name": "x"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}},
    }
    until("the policies are in force", lambda: refusal(api, stranger))
    return api


def refusal(api: Api, job: Object) -> str:
    """Return why the Job cannot be created; empty if it can."""
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
def test_the_operators_own_jobs_can_be_created(operator_api: Api, settings: Settings, template: Object) -> None:
    resource = {**OWNER, "spec": {**SPEC, "podTemplate": template}}
    assert refusal(operator_api, trainer(settings, template)) == ""
    assert refusal(operator_api, build_preflight_job(resource, FineTuneJob.of(resource), 1, settings)) == ""
    merge = build_merge_job(resource, FineTuneJob.of(resource), 1, ResolvedModel(), settings, None)
    assert refusal(operator_api, merge) == ""
    assert refusal(operator_api, build_clean_up_job(resource, FineTuneJob.of(resource), 1, settings)) == ""


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
def test_no_other_job_can_be_created(
    operator_api: Api, settings: Settings, path: str, value: Any, message: str
) -> None:
    job = copy.deepcopy(trainer(settings))
    *parents, last = path.split(".")
    node: Any = job
    for parent in parents:
        node = node[int(parent)] if parent.isdigit() else node[parent]
    node[int(last) if last.isdigit() else last] = value
    assert message in refusal(operator_api, job)


def analysis_job(settings: Settings, **pod: Any) -> Object:
    """Return the Job of an analysis, with the pod of a trainer and these fields of its own."""
    template = copy.deepcopy(trainer(settings)["spec"]["template"])
    template["spec"] |= pod
    identity = AnalysisId("default", "bot", "11111111-1111-1111-1111-111111111111", 1, "", 1, "")
    analysis = Analysis.model_validate({"job": {"cronJobRef": {"name": "judge"}}})
    request = AnalysisRequest(analysis, Subject(identity, "bot", "sha256:2", "sha256:1", (), (), "bot", "bot"))
    return build_job({"spec": {"jobTemplate": {"spec": {"template": template}}}}, request)


def test_jobs_of_analyses_are_created_only_where_the_chart_allows_them(
    empty_cluster: Cluster, operator_api: Api, settings: Settings
) -> None:
    assert "the Job belongs to no FineTuneJob" in refusal(operator_api, analysis_job(settings))
    allowing, default = (
        yaml.safe_dump_all(of_kind(render(values), *POLICIES)) for values in ({"analysis.jobs.enabled": "true"}, {})
    )
    try:
        empty_cluster.kubectl("apply", "--server-side", "-f", "-", stdin=allowing)
        until("the policies are in force", lambda: not refusal(operator_api, analysis_job(settings)))
        pod = analysis_job(settings)["spec"]["template"]["spec"]
        (container,), of_node = pod["containers"], {"name": "x", "hostPath": {"path": "/"}}
        two = [{**container, "name": "judge", "image": "judge:1"}, {**container, "name": "proxy"}]
        fetch = {**container, "name": "fetch"}
        assert refusal(operator_api, analysis_job(settings, containers=two, initContainers=[fetch])) == ""
        for change, words in (
            ({"containers": [*two, {"name": "x", "image": "x"}]}, "the container may gain privileges"),
            ({"initContainers": [{**fetch, "securityContext": {"privileged": True}}]}, "is privileged"),
            ({"serviceAccountName": "admin"}, "trainer.podPolicy.serviceAccountNames"),
            ({"volumes": [*pod["volumes"], of_node]}, "a path of the node"),
        ):
            assert words in refusal(operator_api, analysis_job(settings, **change))
        stranger = analysis_job(settings)
        stranger["metadata"]["ownerReferences"][0]["kind"] = "Deployment"
        assert "the Job belongs to no FineTuneJob" in refusal(operator_api, stranger)
        assert refusal(operator_api, trainer(settings)) == ""
    finally:
        empty_cluster.kubectl("apply", "--server-side", "-f", "-", stdin=default)


def test_only_trainers_have_an_image_of_their_own(operator_api: Api, settings: Settings) -> None:
    for build in (build_preflight_job, build_clean_up_job):
        job = build(OWNER, FineTuneJob.of(OWNER), 1, settings)
        job["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
        assert "only trainer and merge pods may have an image of their own" in refusal(operator_api, job)


def test_of_a_fine_tune_job_only_our_finalizer_changes(empty_cluster: Cluster, operator_api: Api) -> None:
    install_crds(empty_cluster)
    admin = Api(empty_cluster.kubeconfig, "default")
    admin.create_job("theirs")

    def patched(change: Object, api: Api = operator_api) -> str:
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


def test_others_are_not_concerned(empty_cluster: Cluster, operator_api: Api) -> None:
    stranger = {
        "metadata": {"name": "x"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}},
    }
    assert refusal(Api(empty_cluster.kubeconfig, "default"), stranger) == ""


def test_pods_and_config_maps_of_others_stay_as_they_are(empty_cluster: Cluster, operator_api: Api) -> None:
    admin = Api(empty_cluster.kubeconfig, "default")
    for name in ("theirs", "finetune-adapters-vllm"):
        admin.core.create_namespaced_config_map("default", {"metadata": {"name": name}, "data": {"a": "b"}})
    pod = {"metadata": {"name": "theirs"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    admin.core.create_namespaced_pod("default", pod)
    with pytest.raises(ApiException, match="only ConfigMaps of its agents"):
        operator_api.core.patch_namespaced_config_map("theirs", "default", {"data": {"a": "c"}})
    with pytest.raises(ApiException, match="only ConfigMaps of its agents"):
        operator_api.core.delete_namespaced_config_map("theirs", "default")
    operator_api.core.patch_namespaced_config_map("finetune-adapters-vllm", "default", {"data": {"a": "c"}})
    operator_api.core.delete_namespaced_config_map("finetune-adapters-vllm", "default")
    with pytest.raises(ApiException, match="changes no image of a pod"):
        operator_api.core.patch_namespaced_pod(
            "theirs", "default", {"spec": {"containers": [{"name": "x", "image": "evil"}]}}
        )
    operator_api.core.patch_namespaced_pod("theirs", "default", {"metadata": {"annotations": {"a": "b"}}})
    operator_api.core.patch_namespaced_pod("theirs", "default", {"spec": {"activeDeadlineSeconds": 1}})


VERSION_OF_BOT = DesiredAdapter(
    deployment="bot", served_name="bot", version=DesiredVersion(uri="s3://b/a", digest=f"sha256:{'1' * 64}")
)


@pytest.mark.parametrize(
    ("kind", "method", "template_state"),
    [
        ("Deployment", "deployment", None),
        ("StatefulSet", "stateful_set", None),
        ("Deployment", "deployment", DesiredState(adapters=[VERSION_OF_BOT])),
    ],
    ids=["Deployment", "StatefulSet", "strategy Rolling"],
)
def test_of_a_workload_only_the_agent_changes(
    empty_cluster: Cluster,
    operator_api: Api,
    settings: Settings,
    kind: str,
    method: str,
    template_state: DesiredState | None,
) -> None:
    admin = Api(empty_cluster.kubeconfig, "default")

    def call(api: Api, verb: str, *arguments: Any) -> Any:
        return getattr(client.AppsV1Api(api.client), f"{verb}_namespaced_{method}")(*arguments)

    workload: Any = engine(
        containers=[{"name": "vllm", "image": "vllm"}], initContainers=[{"name": "init", "image": "init"}]
    )
    live = {**admin.plain(call(admin, "create", "default", {**workload, "kind": kind})), "kind": kind}
    parameters = AgentParameters(
        container="vllm",
        engine=ENGINES["vllm"],
        secrets=("s3",),
        image=settings.operator_image,
        pull_policy="Always",
        report_url=settings.report_url,
        pods=settings.pods,
        template_state=template_state,
    )
    injection = {"apiVersion": "apps/v1", "kind": kind, **build_injection(live, parameters)}

    def apply(body: Object) -> None:
        response = operator_api.client.call_api(
            *operator_api.client.param_serialize(
                "PATCH",
                f"/apis/apps/v1/namespaces/default/{kind.lower()}s/vllm",
                query_params=[("fieldManager", "finetune-operator")],
                header_params={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
            )
        )
        assert response.status == 200, response.read()

    def patched(change: Object) -> str:
        try:
            call(operator_api, "patch", "vllm", "default", change)
        except ApiException as error:
            return str(error.body)
        return ""

    def pod(**fields: Any) -> Object:
        return {"spec": {"template": {"spec": fields}}}

    apply(injection)
    evil = {"name": "x", "image": "evil"}
    assert f"changes no container of a {kind}" in patched(pod(containers=[{"name": "vllm", "image": "evil"}]))
    assert "changes no container" in patched(pod(containers=[{"name": "vllm", "command": ["sh"]}]))
    assert "changes no container" in patched(pod(containers=[evil]))
    assert "adds no init container" in patched(pod(initContainers=[evil]))
    assert "adds no init container" in patched(pod(initContainers=[{"name": "init", "image": "evil"}]))
    privileged = {"privileged": True, "allowPrivilegeEscalation": None}
    for agent in [{"name": item["name"]} for item in injection["spec"]["template"]["spec"]["initContainers"]]:
        assert "another image" in patched(pod(initContainers=[{**agent, "image": "evil"}]))
        assert "another command" in patched(pod(initContainers=[{**agent, "command": ["sh"]}]))
        assert "more privileges" in patched(pod(initContainers=[{**agent, "securityContext": privileged}]))
    assert "adds no volumes" in patched(pod(volumes=[{"name": "x", "secret": {"secretName": "theirs"}}]))
    assert "adds no volumes" in patched(pod(volumes=[{"name": "finetune-x", "hostPath": {"path": "/"}}]))
    assert "identity" in patched(pod(serviceAccountName="admin"))
    assert "identity" in patched(pod(hostNetwork=True))
    assert f"identity of a {kind}'s pods" in patched({"spec": {"replicas": 0}})
    apply({"apiVersion": "apps/v1", "kind": kind, **build_removal(live)})
    unchanged = admin.plain(call(admin, "read", "vllm", "default"))
    assert [container["name"] for container in unchanged["spec"]["template"]["spec"]["initContainers"]] == ["init"]
    call(admin, "delete", "vllm", "default")


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
