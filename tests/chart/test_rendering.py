"""What `helm install` would create for which values."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.pod_defaults import PodDefaults
from finetune_operator.settings import Settings
from tests.chart.helm import CHART, IMAGES, NAMESPACE, HelmError, Object, helm, is_hook, of_kind, render, settings

pytestmark = pytest.mark.cluster  # helm comes with the development cluster
VERSION = importlib.metadata.version("finetune-operator")
DIGEST = "sha256:" + "a" * 64


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return render()


def deployment(values: dict[str, str] | None = None) -> Object:
    (rendered,) = of_kind(render(values), "Deployment")
    return rendered


def container(values: dict[str, str] | None = None) -> Object:
    (operator_container,) = deployment(values)["spec"]["template"]["spec"]["containers"]
    return dict(operator_container)


def environment(values: dict[str, str] | None = None) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container(values)["env"]}


def rules(objects: list[Object], *kinds: str) -> list[Object]:
    return [
        rule
        for item in of_kind(objects, *kinds)
        for rule in item["rules"]
        if "aggregate" not in str(item["metadata"]["labels"])
    ]


def test_the_chart_has_no_lint() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *settings({}))


@pytest.mark.parametrize("missing", sorted(IMAGES))
def test_without_an_image_the_install_says_which_value_to_give(missing: str) -> None:
    with pytest.raises(HelmError, match=f"{missing} is not set: build the image"):
        render({missing: ""})


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"watchNamespace": "team"}, "'watchNamespace' not allowed"),
        ({"image.name": "operator"}, "'name' not allowed"),
        ({"logging.level": "LOUD"}, "/logging/level"),
        ({"image.digest": "latest"}, "/image/digest"),
        ({"uninstall.timeoutSeconds": "1"}, "/uninstall/timeoutSeconds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_that_means_nothing_is_refused(values: dict[str, str], path: str) -> None:
    with pytest.raises(HelmError, match="values don't meet the specifications of the schema") as refused:
        render(values)
    assert path in str(refused.value)


def test_every_object_has_the_standard_labels(objects: list[Object]) -> None:
    for item in objects:
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "finetune-operator"
        assert labels["app.kubernetes.io/instance"] == "finetune-operator"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert {"app.kubernetes.io/version", "app.kubernetes.io/component", "helm.sh/chart"} <= labels.keys()


def test_the_service_finds_the_operators_pod_and_no_other(objects: list[Object]) -> None:
    (service,) = of_kind(objects, "Service")
    selector = service["spec"]["selector"].items()
    assert selector <= deployment()["spec"]["template"]["metadata"]["labels"].items()
    (job,) = [item for item in render({"crds.keep": "false"}) if item["kind"] == "Job"]
    assert not selector <= job["spec"]["template"]["metadata"]["labels"].items()


def test_the_crds_are_those_of_the_repository(objects: list[Object]) -> None:
    installed = {item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "CustomResourceDefinition")}
    generated = [yaml.safe_load(path.read_text()) for path in Path("crds").iterdir()]
    assert installed == {item["metadata"]["name"]: item["spec"] for item in generated}


def test_the_crds_go_with_the_release_unless_they_are_to_be_kept() -> None:
    def policies(values: dict[str, str]) -> list[Any]:
        return [
            (item["metadata"].get("annotations") or {}).get("helm.sh/resource-policy")
            for item in of_kind(render(values), "CustomResourceDefinition")
        ]

    assert policies({}) == ["keep", "keep"]
    assert policies({"crds.keep": "false"}) == [None, None]
    assert policies({"crds.keep": "false", "watchNamespaces": "{team-a}"}) == ["keep", "keep"]
    assert policies({"crds.enabled": "false"}) == []


@pytest.mark.parametrize(
    ("values", "cleans_up"),
    [
        ({}, False),
        ({"crds.keep": "false"}, True),
        ({"crds.keep": "false", "crds.enabled": "false"}, False),
        ({"crds.keep": "false", "uninstall.cleanUp": "false"}, False),
    ],
    ids=["default", "CRDs go", "CRDs of another release", "not wanted"],
)
def test_agents_are_taken_out_only_where_the_crds_go_too(values: dict[str, str], cleans_up: bool) -> None:
    assert any(is_hook(item) for item in render(values)) is cleans_up


def test_a_clean_up_touches_the_watched_namespaces_only() -> None:
    hooks = [item for item in render({"crds.keep": "false", "watchNamespaces": "{team-a,team-b}"}) if is_hook(item)]
    assert sorted(item["kind"] for item in hooks) == ["Job", *2 * ["Role"], *2 * ["RoleBinding"], "ServiceAccount"]
    assert {item["metadata"]["namespace"] for item in hooks if item["kind"] == "Role"} == {"team-a", "team-b"}
    (batch_job,) = [item for item in hooks if item["kind"] == "Job"]
    arguments = batch_job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments == ["--namespace=team-a", "--namespace=team-b"]


def test_the_operator_reads_no_secret_and_has_no_wildcard(objects: list[Object]) -> None:
    rules = [rule for item in objects if item["kind"] in ("Role", "ClusterRole") for rule in item["rules"]]
    assert rules
    for rule in rules:
        assert "secrets" not in rule["resources"]
        assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"]


def test_with_chosen_namespaces_it_may_do_nothing_elsewhere() -> None:
    objects = render({"watchNamespaces": "{team-a,team-b}"})
    assert rules(objects, "ClusterRole") == []
    assert of_kind(objects, "ClusterRoleBinding") == []
    assert sorted(item["metadata"]["namespace"] for item in of_kind(objects, "Role")) == ["team-a", "team-b"]
    assert sorted(item["metadata"]["namespace"] for item in of_kind(objects, "RoleBinding")) == ["team-a", "team-b"]
    assert environment({"watchNamespaces": "{team-a,team-b}"})["FINETUNE_OPERATOR_NAMESPACES"] == "team-a,team-b"


def test_with_chosen_namespaces_it_may_do_there_what_it_else_may_do_everywhere() -> None:
    everywhere = rules(render(), "ClusterRole")
    chosen = render({"watchNamespaces": "{team-a}"})
    of_the_cluster = (["leases"], ["tokenreviews"])
    assert rules(chosen, "Role") == [
        *[rule for rule in everywhere if rule["resources"] not in of_the_cluster],
        *rules(render(), "Role"),
    ]


def test_a_namespaced_installation_can_do_without_any_object_of_the_cluster() -> None:
    alone = {
        "watchNamespaces": "{team-a}",
        "crds.enabled": "false",
        "admissionPolicy.enabled": "false",
        "userRoles.aggregate": "false",
    }
    assert [item["kind"] for item in render(alone) if "namespace" not in item["metadata"]] == []


def test_the_lease_is_where_the_operator_is_or_in_each_of_its_namespaces() -> None:
    assert {role["metadata"]["namespace"] for role in of_kind(render(), "Role")} == {NAMESPACE}
    chosen = render({"watchNamespaces": "{team-a,team-b}"})
    assert {role["metadata"]["namespace"] for role in of_kind(chosen, "Role")} == {"team-a", "team-b"}
    (everywhere,) = [rule for rule in rules(render(), "ClusterRole") if rule["resources"] == ["leases"]]
    assert everywhere["verbs"] == ["list"]


def test_the_operator_understands_its_environment() -> None:
    log = {"logging.level": "DEBUG", "logging.format": "json"}
    settings = Settings.of(environment({"watchNamespaces": "{a,b}", "image.pullPolicy": "Always", **log}))
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")
    assert settings.operator_image == f"{IMAGES['image.repository']}:{VERSION}"
    assert settings.trainer_image == f"{IMAGES['trainerImage.repository']}:{VERSION}"
    assert settings.report_url == f"http://finetune-operator.{NAMESPACE}.svc:8080"
    assert settings.namespaces == ("a", "b")
    assert settings.allow_remote_code is False
    assert Settings.of(environment({"trainer.allowRemoteCode": "true"})).allow_remote_code is True
    assert settings.simulated_gpus is False
    assert Settings.of(environment({"trainer.simulatedGpus": "true"})).simulated_gpus is True
    assert (settings.log_level, settings.image_pull_policy) == ("DEBUG", "Always")
    assert container()["ports"][0]["containerPort"] == settings.listen_port


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, f"registry.example.com/operator:{VERSION}"),
        ({"image.tag": "v2"}, "registry.example.com/operator:v2"),
        ({"image.tag": "v2", "image.digest": DIGEST}, f"registry.example.com/operator@{DIGEST}"),
    ],
    ids=["version of the chart", "tag", "digest"],
)
def test_which_image_runs(values: dict[str, str], image: str) -> None:
    assert container(values)["image"] == image
    assert environment(values)["FINETUNE_OPERATOR_OPERATOR_IMAGE"] == image


@pytest.mark.parametrize(
    ("values", "path", "expected"),
    [
        ({"nodeSelector.zone": "a"}, "nodeSelector", {"zone": "a"}),
        ({"tolerations[0].operator": "Exists"}, "tolerations", [{"operator": "Exists"}]),
        ({"imagePullSecrets[0].name": "pull"}, "imagePullSecrets", [{"name": "pull"}]),
        ({"priorityClassName": "system-cluster-critical"}, "priorityClassName", "system-cluster-critical"),
        ({"affinity.podAntiAffinity.x": "y"}, "affinity", {"podAntiAffinity": {"x": "y"}}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_reach_the_pod(values: dict[str, str], path: str, expected: Any) -> None:
    assert deployment(values)["spec"]["template"]["spec"][path] == expected


def test_extra_environment_and_annotations_reach_the_pod() -> None:
    values = {
        "extraEnv[0].name": "HTTPS_PROXY",
        "extraEnv[0].value": "http://proxy",
        "podAnnotations.a": "b",
        "podLabels.team": "ml",
    }
    assert environment(values)["HTTPS_PROXY"] == "http://proxy"
    metadata = deployment(values)["spec"]["template"]["metadata"]
    assert metadata["annotations"]["a"] == "b"
    assert metadata["labels"]["team"] == "ml"


def test_what_every_pod_gets_is_read_by_the_operator() -> None:
    values = {
        "pods.env[0].name": "HTTPS_PROXY",
        "pods.env[0].value": "http://proxy",
        "pods.fixedUser": "false",
        "pods.resources.trainer.limits": "null",
        "trainer.podPolicy.securityStandard": "baseline",
        "trainer.podPolicy.hostPaths": "{/data,/models}",
        "trainer.podPolicy.serviceAccountNames": "{trainer}",
        "analysis.allowedUrls[0]": "http://prometheus.monitoring:9090",
        "analysis.allowedUrls[1]": "https://judge.{namespace}.svc/x",
        "analysis.jobs.enabled": "true",
        "analysis.analysisRuns.enabled": "true",
        "traffic.inferenceModelRewrites.enabled": "true",
    }
    settings = Settings.of(environment(values))
    assert [variable.to_json() for variable in settings.pods.env] == [{"name": "HTTPS_PROXY", "value": "http://proxy"}]
    assert not settings.pods.fixed_user
    assert (settings.pods.resources.trainer.requests["cpu"], settings.pods.resources.trainer.limits) == ("500m", {})
    assert settings.pod_security_standard == "baseline"
    assert (settings.pod_host_paths, settings.pod_service_accounts) == (("/data", "/models"), ("trainer",))
    assert settings.analysis_urls == ("http://prometheus.monitoring:9090", "https://judge.{namespace}.svc/x")
    assert (settings.analysis_jobs, settings.analysis_runs, settings.model_rewrites) == (True, True, True)
    default = Settings.of(environment())
    assert (default.analysis_urls, default.analysis_jobs, default.analysis_runs) == ((), False, False)
    assert not default.model_rewrites
    assert Settings.of(environment()).pods == PodDefaults(), "the chart's defaults are the operator's"
    assert "runAsUser" not in deployment(values)["spec"]["template"]["spec"]["securityContext"]


def test_every_container_of_the_chart_has_limits() -> None:
    objects = render({"crds.keep": "false"})
    pods = [item["spec"]["template"]["spec"] for item in objects if item["kind"] in ("Deployment", "Job")]
    assert len(pods) == 2
    for pod in pods:
        for each in pod["containers"]:
            assert {"cpu", "memory"} <= each["resources"]["limits"].keys() & each["resources"]["requests"].keys()


def test_a_label_of_the_users_cannot_hide_the_pod_from_its_service() -> None:
    labels = deployment({"podLabels.app\\.kubernetes\\.io/name": "other"})["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "finetune-operator"


def test_replicas_choose_one_that_works_and_are_spread_over_nodes(objects: list[Object]) -> None:
    (item,) = of_kind(objects, "Deployment")
    assert item["spec"]["replicas"] == 1
    assert item["spec"]["strategy"] == {"type": "Recreate"}
    assert "topologySpreadConstraints" not in item["spec"]["template"]["spec"]
    spec = deployment({"replicas": "2"})["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate"}
    (constraint,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert environment({})["FINETUNE_OPERATOR_RELEASE"] == f"{NAMESPACE}/finetune-operator"


def test_what_is_optional_is_off() -> None:
    assert of_kind(render(), "NetworkPolicy", "ServiceMonitor") == []
    on = render(
        {
            "networkPolicy.enabled": "true",
            "metrics.serviceMonitor.enabled": "true",
            "metrics.serviceMonitor.labels.release": "prom",
        }
    )
    policy, monitor = of_kind(on, "NetworkPolicy", "ServiceMonitor")
    assert policy["spec"]["ingress"][0]["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert monitor["metadata"]["labels"]["release"] == "prom"


def test_another_release_name_goes_before_the_charts() -> None:
    (service,) = of_kind(render(release="prod"), "Service")
    assert service["metadata"]["name"] == "prod-finetune-operator"
