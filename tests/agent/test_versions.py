"""A new version under a served name: when it takes over, and when the one before stays."""

import threading
import time
from pathlib import Path

import httpx

from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.uris import parse_s3_uri
from tests.agent.clients import BOT, answer, ask, ask_until_it_ends, short
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import POD, RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.waiting import wait_for


def test_a_changed_object_is_refused_and_the_version_before_continues(
    agent: RunningAgent, engine: FakeEngine, make: Make, s3_server: S3Server
) -> None:
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready()
    uri = parse_s3_uri(second.uri)
    path = s3_server.buckets / uri.bucket / uri.key / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    agent.want(agent.adapter(BOT, second, previous=first))
    adapter = agent.wait_state(BOT, "Refused")
    assert adapter.reason is Reason.DIGEST_MISMATCH
    assert adapter.active_digest == first.digest
    assert agent.ready()
    assert answer(engine, BOT) == 0.7


def test_a_digest_that_is_not_the_manifests_is_refused(agent: RunningAgent, make: Make) -> None:
    version = make(0.7)
    wrong = DesiredVersion(uri=version.uri, digest=version.digest[:-1] + ("0" if version.digest[-1] != "0" else "1"))
    agent.want(agent.adapter(BOT, wrong))
    assert agent.wait_state(BOT, "Refused").reason is Reason.DIGEST_MISMATCH


def test_a_new_version_waits_for_the_requests_of_the_old_one(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready()
    stream: list[httpx.Response] = []
    client = threading.Thread(target=lambda: stream.append(ask(engine, BOT, max_tokens=100)))
    client.start()
    wait_for(lambda: engine.streams, 5, "the stream runs")
    agent.want(agent.adapter(BOT, second, previous=first))
    agent.wait_state(BOT, "Draining")
    assert agent.probe() == (503, f"draining: {BOT}\n")
    time.sleep(1.0)
    assert engine.loaded[BOT].endswith(first.digest[7:])  # still the old one: its request runs
    engine.finish()
    client.join(10)
    agent.wait_ready()
    assert stream[0].json()["choices"][0]["text"] == "0.7"
    assert answer(engine, BOT) == 0.9
    assert "load_inplace" not in [call for call, _ in engine.calls]
    assert engine.calls.index(("unload", BOT)) > engine.calls.index(("load", f"{BOT}@{short(second)}"))


def test_a_request_that_never_ends_does_not_hold_up_the_swap_for_ever(
    tmp_path: Path, s3_server: S3Server, engine: FakeEngine, make: Make
) -> None:
    first, second = make(0.7), make(0.9)
    with RunningAgent(tmp_path / "pod", s3_server, engine.port, drain_seconds=2.0) as agent:
        agent.want(agent.adapter(BOT, first))
        agent.wait_ready()
        threading.Thread(target=ask_until_it_ends, args=(engine, BOT), daemon=True).start()
        wait_for(lambda: engine.streams, 5, "the stream runs")
        agent.want(agent.adapter(BOT, second, previous=first))
        agent.wait_active(BOT, second)
        assert answer(engine, BOT) == 0.9
        assert (agent.settings.adapters_directory / BOT / first.digest[7:]).is_dir()  # the request may still need it


def test_a_single_pod_stays_in_the_service_while_the_name_moves(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first, drain=False))
    agent.wait_ready()
    statuses: list[int] = []
    agent.want(agent.adapter(BOT, second, previous=first, drain=False))
    while agent.adapter_report(BOT).active_digest != second.digest:
        statuses.append(agent.probe()[0])
    assert set(statuses) == {200}
    assert answer(engine, BOT) == 0.9


def test_a_version_that_fails_under_the_served_name_is_replaced_by_the_previous_one(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready()
    engine.effect_as[BOT, second.digest[7:]] = 0.0
    engine.delays[BOT] = 0.3
    agent.want(agent.adapter(BOT, second, previous=first))
    new = str(agent.settings.adapters_directory / BOT / second.digest[7:])
    held = False
    while agent.adapter_report(BOT).state != "Refused" or not agent.ready():
        before, status, after = engine.loaded.get(BOT), agent.probe()[0], engine.loaded.get(BOT)
        if before == after == new:
            held = True
            assert status == 503  # what has the name is not proven
    assert held
    adapter = agent.wait_active(BOT, first)
    assert (adapter.state, adapter.reason, adapter.active_digest) == ("Refused", Reason.PROOF_FAILED, first.digest)
    assert answer(engine, BOT) == 0.7


def test_a_first_version_that_fails_under_the_served_name_does_not_keep_it(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    version = make(0.7)
    engine.effect_as[BOT, version.digest[7:]] = 0.0
    agent.want(agent.adapter(BOT, version))
    agent.wait_state(BOT, "Refused")
    wait_for(lambda: BOT not in engine.loaded, 10, "the name is gone")
    agent.wait_ready()


def test_pods_move_only_when_they_are_named(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready()
    agent.want(agent.adapter(BOT, second, previous=first, pods=["web-2"]))
    time.sleep(0.7)
    assert answer(engine, BOT) == 0.7
    assert agent.ready()
    agent.want(agent.adapter(BOT, second, previous=first, pods=["web-2", POD]))
    agent.wait_active(BOT, second)
