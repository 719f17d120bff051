"""What the agent tells Prometheus, and a person with kubectl port-forward."""

import asyncio

import httpx
from prometheus_client.parser import text_string_to_metric_families

from finetune_agent.agent import Agent
from finetune_agent.server import build_application
from finetune_agent.settings import Settings
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import RunningAgent
from tools.testing.waiting import wait_for

BOT = 'support/"bot"'
STRANGER = "/tmp/somebody"


def read_metrics(agent: RunningAgent) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the samples of each metric, as Prometheus' own parser reads them."""
    answer = httpx.get(f"http://127.0.0.1:{agent.settings.port}/metrics", timeout=20, trust_env=False)
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            samples.setdefault(sample.name.removeprefix("finetune_agent_"), []).append((sample.labels, sample.value))
    return samples


def test_prometheus_reads_each_adapter(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    version = make(0.7)
    agent.want(agent.adapter(BOT, version), agent.adapter("bad", make(0.7, applied=0.0)))
    agent.wait_active(BOT, version)
    agent.wait_state("bad", "Refused")
    engine.loaded[BOT], engine.effects[BOT] = STRANGER, 0.1
    wait_for(lambda: agent.adapter_report(BOT).replaced, 20, "the stranger is seen")

    def read_when_active() -> dict[str, list[tuple[dict[str, str], float]]] | None:
        samples = read_metrics(agent)  # a report of the tick before may still say Active while ours is loaded again
        is_active = samples["ready"] == [({}, 1.0)] and samples["adapter_info"][0][0]["state"] == "Active"
        return samples if is_active else None

    samples = wait_for(read_when_active, 20, "the adapter to be active again")
    name, served = {"served_name": BOT}, {"served_name": BOT, "digest": version.digest}
    assert samples["engine_info"] == [({"engine": "vllm", "version": "0.32.0+cpu"}, 1.0)]
    assert [labels["state"] for labels, _ in samples["adapter_info"]] == ["Active", "Refused"]
    assert samples["adapter_info"][0][0] == {**served, "state": "Active"}
    assert samples["adapter_replaced_total"][0] == (name, 1.0)
    assert samples["adapter_failed_reproofs_total"][0] == (name, 0.0)
    for metric in ("adapter_load_seconds", "adapter_proof_seconds", "adapter_proven_timestamp_seconds"):
        ((labels, value),) = samples[metric]
        assert (labels, value > 0) == (served, True)


def test_a_person_sees_what_is_served_and_why_and_no_secret(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    version = make(0.7)
    agent.want(agent.adapter(BOT, version))
    agent.wait_active(BOT, version)
    answer = httpx.get(f"http://127.0.0.1:{agent.settings.port}/adapters", timeout=20, trust_env=False)
    shown = answer.json()
    assert (shown["pod"], shown["ready"], shown["because"]) == ("web-1", True, "ready")
    assert shown["engine"]["version"] == "0.32.0+cpu"
    assert shown["loaded"][BOT].endswith(version.digest[7:])
    assert "of the trained effect" in shown["adapters"][0]["proof"]
    assert '\n  "ready": true' in answer.text
    secrets = agent.settings.secrets_directory
    hidden = [path.read_text().strip() for path in secrets.rglob("*") if path.is_file()]
    hidden += ["s3://", "the-token"]
    assert not [text for text in hidden if text in answer.text]


def test_nobody_outside_the_pod_sees_it() -> None:
    transport = httpx.ASGITransport(build_application(Agent(Settings("pod"))), client=("10.1.2.3", 1234))

    async def ask(path: str) -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
            return (await client.get(path)).status_code

    assert asyncio.run(ask("/adapters")) == 403
    assert asyncio.run(ask("/metrics")) == 200
