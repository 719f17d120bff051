"""The real API server takes the Jobs that a podTemplate leads to, and drops nothing of it."""

from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from finetune_api.finetunejob import FineTuneJob
from finetune_operator.resources.injected import covers
from finetune_operator.resources.jobs import ResolvedModel, build_preflight_job, build_trainer_job
from tests.operator.fake_cluster import SETTINGS
from tests.operator.locked_down import POD_TEMPLATE
from tools.testing.kubernetes_api import Api
from tools.testing.operator_process import Operator

pytestmark = pytest.mark.cluster


def test_every_field_of_a_pod_template_reaches_the_jobs(api: Api) -> None:
    resource = api.create_job("locked-down", podTemplate=POD_TEMPLATE)
    assert resource["spec"]["podTemplate"] == POD_TEMPLATE
    job = FineTuneJob.of(resource)
    for built in (
        build_preflight_job(resource, job, 1, SETTINGS),
        build_trainer_job(resource, job, 1, ResolvedModel(), SETTINGS, [], ["node-7"]),
    ):
        stored = api.plain(
            api.batch.create_namespaced_job(api.namespace, built, dry_run="All", field_validation="Strict")
        )
        assert covers(stored["spec"], built["spec"])


OF_NO_LABEL = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a b": "c"}}}


@pytest.mark.parametrize(
    ("template", "field"),
    [
        ({"labels": {"not a label": "x"}}, "spec.podTemplate.labels: "),
        ({"tolerations": [{"operator": "Exists", "value": "x"}]}, "spec.podTemplate.tolerations[0]"),
        ({"dnsPolicy": "None"}, "spec.podTemplate.dnsConfig: "),
        ({"hostAliases": [{"ip": "1.2.3", "hostnames": ["a"]}]}, "spec.podTemplate.hostAliases[0].ip: "),
        (
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.wrong"}}}]},
            "spec.podTemplate.env.valueFrom.fieldRef.fieldPath: ",
        ),
        (
            {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [OF_NO_LABEL]}}},
            "spec.podTemplate.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector."
            "matchLabels: ",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_no_pod_can_have_ends_the_job_with_the_field(
    api: Api, operator: Operator, template: dict[str, Any], field: str, request: pytest.FixtureRequest
) -> None:
    name = f"wild-{request.node.callspec.indices['template']}"
    api.create_job(name, podTemplate=template)
    api.await_condition(name, "Accepted", "False", "SpecInvalid")
    accepted = api.message(name, "Accepted")
    assert field in accepted
    assert accepted.endswith("Correct it in a new FineTuneJob")
    assert api.job_names(name) == []


def test_a_host_path_makes_no_pod(api: Api, operator: Operator) -> None:
    volumes = [{"name": "node", "hostPath": {"path": "/etc"}}]
    api.create_job("host", podTemplate={"volumes": volumes, "volumeMounts": [{"name": "node", "mountPath": "/node"}]})
    api.await_condition("host", "Accepted", "False", "SpecInvalid")
    assert "trainer.podPolicy.hostPaths" in api.message("host", "Accepted")
    assert api.job_names("host") == []


def test_a_pod_template_that_is_no_pods_is_refused_at_once(api: Api) -> None:
    with pytest.raises(ApiException) as refused:
        api.create_job("typo", podTemplate={"affinity": {"nodeAffinity": {"required": "x"}}, "hostAliases": [{}]})
    assert "spec.podTemplate.hostAliases[0].ip" in str(refused.value.body)
