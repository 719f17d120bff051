"""The example of a NetworkPolicy: it chooses the pods that have the agent, and opens their ports only."""

from pathlib import Path

import yaml

from devcluster.cluster import Cluster
from finetune_engines import ENGINES
from finetune_operator.kube.kinds import ROLE_LABEL
from finetune_operator.resources.injection import AGENT_PORT, AGENT_ROLE

POLICY = Path("examples/networkpolicy.yaml")


def test_it_chooses_the_pods_with_the_agent_and_opens_their_ports_to_named_namespaces() -> None:
    spec = yaml.safe_load(POLICY.read_text(encoding="utf-8"))["spec"]
    assert spec["podSelector"] == {"matchLabels": {ROLE_LABEL: AGENT_ROLE}}
    assert spec["policyTypes"] == ["Ingress"]
    ports = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
    assert ports == {AGENT_PORT, *(engine.port for engine in ENGINES.values())}
    sources = [source["namespaceSelector"] for rule in spec["ingress"] for source in rule["from"]]
    assert all(source["matchLabels"] for source in sources)


def test_the_api_server_accepts_it(control_plane: Cluster) -> None:
    control_plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(POLICY))
