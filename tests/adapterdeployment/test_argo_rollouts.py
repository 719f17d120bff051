"""AnalysisRuns of Argo Rollouts decide on a canary, on a real API server: by its real controller, and without it."""

import http.server
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from devcluster import binaries
from tests.adapterdeployment.groups import V1, V2
from tests.adapterdeployment.serving import ServingNamespace
from tests.adapterdeployment.test_analysis_objects_on_the_server import begin_canary
from tests.adapterdeployment.test_canary_on_the_server import await_pods, restart
from tests.adapterdeployment.test_release_on_the_server import report_all, run_finetune, status
from tools.testing.http_server import serving as serving_metrics
from tools.testing.kubernetes_api import Object
from tools.testing.process import running
from tools.testing.waiting import free_port, until

pytestmark = [pytest.mark.cluster]

ROLLOUTS = "argoproj.io"
KINDS = {"AnalysisTemplate": "analysistemplates", "AnalysisRun": "analysisruns"}


class Metrics(http.server.BaseHTTPRequestHandler):
    """Answer with a ratio of errors for the pods that the path names: too many for two pods."""

    def do_GET(self) -> None:
        body = json.dumps({"ratio": 0.3 if "%7C" in self.path or "|" in self.path else 0.01}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


def build_template(url: str) -> Object:
    """Build an AnalysisTemplate with one number from a URL."""
    metric = {
        "name": "errors",
        "successCondition": "result < 0.1",
        "provider": {"web": {"url": f"{url}/{{{{args.pods}}}}", "jsonPath": "{$.ratio}"}},
    }
    spec = {"args": [{"name": "pods"}], "metrics": [metric]}
    return {
        "apiVersion": f"{ROLLOUTS}/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": {"name": "success-rate"},
        "spec": spec,
    }


ANALYSIS: Object = {"analysisTemplateRef": {"name": "success-rate", "args": [{"name": "pods", "value": "{{ pods }}"}]}}


def runs(serving: ServingNamespace) -> list[Object]:
    """Return the AnalysisRuns, the oldest first."""
    try:
        answer = serving.api.custom.list_namespaced_custom_object(
            ROLLOUTS, "v1alpha1", serving.namespace, KINDS["AnalysisRun"]
        )
    except ApiException as error:
        assert error.status == 404, error.body  # the API server does not know the new kind yet
        return []
    return sorted(answer["items"], key=lambda run: str(run["metadata"]["creationTimestamp"]))


def set_phase(serving: ServingNamespace, name: str, phase: str, **fields: Any) -> None:
    """Do the part of the controller of Argo Rollouts."""
    serving.api.custom.patch_namespaced_custom_object(
        ROLLOUTS, "v1alpha1", serving.namespace, KINDS["AnalysisRun"], name, {"status": {"phase": phase, **fields}}
    )


@pytest.fixture
def any_schema(serving: ServingNamespace) -> Iterator[None]:
    """Install both kinds with any content."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema}
    objects = [
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{ROLLOUTS}"},
            "spec": {
                "group": ROLLOUTS,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural},
                "versions": [version],
            },
        }
        for kind, plural in KINDS.items()
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    serving.cluster.kubectl("apply", "-f", "-", stdin=text)
    names = [f"crd/{plural}.{ROLLOUTS}" for plural in KINDS.values()]
    serving.cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
    yield
    serving.cluster.kubectl("delete", *names)


@pytest.mark.usefixtures("any_schema")
def test_the_end_of_an_analysis_run_decides(serving: ServingNamespace) -> None:
    serving.kubectl("apply", "-f", "-", stdin=build_template("http://metrics"))
    pods, names = begin_canary(serving, ANALYSIS, ANALYSIS, ANALYSIS_RUNS="true")
    (run,) = until("the AnalysisRun", lambda: runs(serving))
    assert run["spec"]["args"] == [{"name": "pods", "value": names[0]}]
    assert run["spec"]["metrics"] == build_template("http://metrics")["spec"]["metrics"]
    name = run["metadata"]["name"]
    until("it is named", lambda: f"(AnalysisRun '{name}')" in serving.conditions("bot")["Ready"][2])
    restart(serving, pods, [V2, V1])
    set_phase(serving, name, "Error", message="no such host")
    assert "no such host" in serving.await_condition("bot", "Suspended", "True", "AnalysisInconclusive")
    run_finetune(serving, "resume", "bot", "--retry")
    again = until("another AnalysisRun", lambda: runs(serving)[1:])[0]["metadata"]["name"]
    set_phase(serving, again, "Successful")
    await_pods(serving, names)


@pytest.fixture
def argo_rollouts(serving: ServingNamespace, tmp_path: Path) -> Iterator[None]:
    """Run the controller of Argo Rollouts, with its own CRDs, for the namespace."""
    program = binaries.program("rollouts-controller")
    crds = binaries.download_module(binaries.ARGO_ROLLOUTS) / "manifests" / "crds"
    arguments = [argument for file in crds.glob("*-crd.yaml") for argument in ("-f", str(file))]
    serving.cluster.kubectl("apply", "--server-side", *arguments)
    command = [
        str(program), "--kubeconfig", str(serving.cluster.kubeconfig), "--namespaced", "--namespace", serving.namespace,
        "--leader-elect=false", "--metricsPort", str(free_port()), "--healthzPort", str(free_port()),
    ]  # fmt: skip
    with running(command, tmp_path / "argo-rollouts.log"):
        yield
    serving.cluster.kubectl("delete", *arguments)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)  # Go builds the controller the first time
@pytest.mark.usefixtures("argo_rollouts")
def test_the_real_controller_lets_a_version_pass_and_sends_it_back(serving: ServingNamespace) -> None:
    with serving_metrics(Metrics) as url:
        serving.kubectl("apply", "-f", "-", stdin=build_template(url))
        pods, names = begin_canary(serving, ANALYSIS, ANALYSIS, ANALYSIS_RUNS="true")
        await_pods(serving, names)
        (evidence,) = status(serving)["canary"]["evidence"]
        assert "is Successful: errors Successful (0.01)" in evidence
        report_all(serving, pods[1:], V2)
        message = serving.await_condition("bot", "Stalled", "True", "RolledBack")
        assert "is Failed" in message
        assert "errors Failed (0.3)" in message
