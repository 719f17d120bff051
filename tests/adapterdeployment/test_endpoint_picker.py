"""The real endpoint picker of the Gateway API Inference Extension divides requests as the operator's rewrite says."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import binaries
from tests.adapterdeployment.groups import V2
from tests.adapterdeployment.serving import ServingNamespace
from tests.adapterdeployment.test_release_on_the_server import run_finetune
from tests.adapterdeployment.test_traffic_on_the_server import GROUP, NEW, OLD, apply, await_shares, start
from tools.testing.kubernetes_api import Object
from tools.testing.process import run_script, running
from tools.testing.waiting import free_port, until

pytestmark = [pytest.mark.cluster]
REQUESTS = 400
PROTOCOL = ["xds-protos==1.85.0", "grpcio==1.85.3"]
"""Envoy's protocol, by which a gateway asks the endpoint picker about each request."""
CLIENT = """
import json, sys
import grpc
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import HttpBody, HttpHeaders, ProcessingRequest
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub

address, model, number = sys.argv[1:]
fields = {":path": "/v1/completions", ":method": "POST", "content-type": "application/json"}
headers = HeaderMap(headers=[HeaderValue(key=key, raw_value=value.encode()) for key, value in fields.items()])
body = json.dumps({"model": model, "prompt": "hello"}).encode()
requests = [
    ProcessingRequest(request_headers=HttpHeaders(headers=headers)),
    ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=True)),
]
models = []
with grpc.insecure_channel(address) as channel:
    for _ in range(int(number)):
        answer = b""
        for response in ExternalProcessorStub(channel).Process(iter(requests), timeout=20):
            if response.HasField("immediate_response"):
                sys.exit(f"refused: {response.immediate_response}")
            streamed = response.request_body.response.body_mutation.streamed_response
            answer += streamed.body
            if streamed.end_of_stream:
                break
        models.append(json.loads(answer)["model"])
print(json.dumps(models))
"""


class EndpointPicker:
    """A running endpoint picker."""

    def __init__(self, port: int) -> None:
        """Keep its port."""
        self._address = f"127.0.0.1:{port}"

    def ask(self, model: str, requests: int = REQUESTS) -> Counter[str]:
        """Send requests for a model as a gateway does; return how often each model is to answer."""
        return Counter(json.loads(run_script(CLIENT, PROTOCOL, self._address, model, str(requests))))

    def answers(self, model: str) -> bool:
        """Return whether it answers a request for a model."""
        try:
            return bool(self.ask(model, 1))
        except AssertionError:
            return False


@pytest.fixture
def picker(serving: ServingNamespace, tmp_path: Path) -> Iterator[EndpointPicker]:
    """Run the endpoint picker for the pool of the namespace."""
    port = free_port()
    command = [
        str(binaries.program("epp")), "--pool-name=pool", f"--pool-namespace={serving.namespace}",
        f"--grpc-port={port}", f"--grpc-health-port={free_port()}", f"--metrics-port={free_port()}",
        "--secure-serving=false", "--metrics-endpoint-auth=false",
    ]  # fmt: skip
    with running(command, tmp_path / "epp.log", {"KUBECONFIG": str(serving.cluster.kubeconfig)}):
        yield EndpointPicker(port)


def begin(serving: ServingNamespace, picker: EndpointPicker) -> list[Object]:
    """Let all pods serve the first version, and do the kubelet's part: give each an address."""
    pods = start(serving)
    for number, pod in enumerate(pods, start=1):
        address = f"127.0.1.{number}"
        body = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
        serving.api.core.patch_namespaced_pod_status(pod["metadata"]["name"], serving.namespace, body)
    until("it answers", lambda: picker.answers("bot-name"), 120)
    return pods


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)  # Go builds it the first time
@pytest.mark.usefixtures("gateway")
def test_the_endpoint_picker_divides_the_requests_as_the_steps_say(
    serving: ServingNamespace, picker: EndpointPicker
) -> None:
    pods = begin(serving, picker)
    assert picker.ask("bot-name") == {OLD: REQUESTS}
    apply(serving, V2)
    await_shares(serving, pods, {OLD: 95, NEW: 5})
    until("some requests go to the new version", lambda: picker.ask("bot-name", 100)[NEW])
    found = picker.ask("bot-name")
    assert set(found) == {OLD, NEW}
    assert 3 <= found[NEW] <= 45, "5 % of 400 are 20, with a standard deviation of 4.4"
    assert "goes on after step 1" in run_finetune(serving, "resume", "bot")
    await_shares(serving, pods, {NEW: 100})
    until("no request goes to the old version", lambda: picker.ask("bot-name", 50) == {NEW: 50})
    assert picker.ask("bot-name") == {NEW: REQUESTS}
    assert picker.ask("base", 10) == {"base": 10}, "other models are left alone"


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("gateway")
def test_of_two_rewrites_for_a_model_the_endpoint_picker_takes_the_older(
    serving: ServingNamespace, picker: EndpointPicker
) -> None:
    begin(serving, picker)
    rewrite = {
        "apiVersion": f"{GROUP}/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": {"name": "a-younger-one"},
        "spec": {
            "poolRef": {"group": "inference.networking.k8s.io", "name": "pool"},
            "rules": [
                {
                    "matches": [{"model": {"type": "Exact", "value": name}}],
                    "targets": [{"modelRewrite": "something-else", "weight": 1}],
                }
                for name in ("bot-name", "not-ours")
            ],
        },
    }
    serving.kubectl("apply", "-f", "-", stdin=rewrite)
    until("it knows the younger one", lambda: picker.ask("not-ours", 1) == {"something-else": 1})
    assert picker.ask("bot-name", 50) == {OLD: 50}
