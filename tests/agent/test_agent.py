"""The agent beside a fake engine: many adapters, their files, the desired state and the report."""

import json
import threading
import time
from pathlib import Path

from finetune_api.reasons import Reason
from tests.agent.clients import BOT, answer
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.waiting import wait_for


def test_a_new_adapter_takes_nothing_from_those_that_serve(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    first = make(0.7)
    agent.want(agent.adapter(BOT, first))
    agent.wait_ready()
    agent.want(agent.adapter(BOT, first), agent.adapter("late", make(0.4)))
    states = []
    while agent.report().adapters[-1].state != "Active" or len(agent.report().adapters) < 2:
        states.append(agent.probe()[0])
    assert set(states) == {200}
    assert answer(engine, "late") == 0.4


def test_a_removed_adapter_is_unloaded_and_its_files_go(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    keep = make(0.4)
    agent.want(agent.adapter("keep", keep), agent.adapter(BOT, make(0.7)))
    agent.wait_ready()
    agent.want(agent.adapter("keep", keep))
    wait_for(lambda: list(engine.loaded) == ["keep"], 10, "unloaded")
    wait_for(lambda: [path.name for path in agent.settings.adapters_directory.iterdir()] == ["keep"], 10, "removed")
    assert agent.ready()


def test_files_stay_as_long_as_the_engine_may_read_them(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    versions = [make(effect) for effect in (0.5, 0.7, 0.9)]
    before = None
    for version in versions:
        agent.want(agent.adapter(BOT, version, previous=before))
        agent.wait_active(BOT, version)
        directories = {path.name for path in (agent.settings.adapters_directory / BOT).iterdir()}
        assert {path.rpartition("/")[2] for path in engine.loaded.values()} <= directories
        before = version
    kept_digests = {version.digest[7:] for version in versions[1:]}
    wait_for(
        lambda: {path.name for path in (agent.settings.adapters_directory / BOT).iterdir()} == kept_digests,
        10,
        "the oldest is removed",
    )


def test_a_name_of_the_users_own_is_left_alone(
    agent: RunningAgent, engine: FakeEngine, make: Make, tmp_path: Path
) -> None:
    engine.loaded[BOT], engine.effects[BOT] = "/models/by-hand", 0.1
    agent.want(agent.adapter(BOT, make(0.7)), agent.adapter("base", make(0.8)))
    assert agent.wait_state(BOT, "Refused").reason is Reason.SERVED_NAME_TAKEN
    assert agent.wait_state("base", "Refused").reason is Reason.SERVED_NAME_TAKEN
    agent.wait_ready()
    assert engine.loaded == {BOT: "/models/by-hand"}


def test_a_broken_desired_state_changes_nothing(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    agent.want(agent.adapter(BOT, make(0.7)))
    agent.wait_ready()
    agent.settings.desired_file.write_text("{nonsense")
    time.sleep(0.5)
    assert agent.ready()
    agent.settings.desired_file.unlink()
    time.sleep(0.5)
    assert agent.ready()
    assert BOT in engine.loaded


def test_no_name_reaches_out_of_the_volume(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    name = "a/../../escape"
    agent.want(agent.adapter(name, make(0.7)))
    agent.wait_ready()
    assert Path(engine.loaded[name]).parent.parent == agent.settings.adapters_directory


def test_the_report_reaches_the_operator_with_the_pods_token(
    tmp_path: Path, s3_server: S3Server, engine: FakeEngine, make: Make
) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    got: list[tuple[str, str, dict[str, object]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((self.path, self.headers["Authorization"], body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with RunningAgent(tmp_path / "pod", s3_server, engine.port, report_url=url) as agent:
            version = make(0.7)
            agent.want(agent.adapter(BOT, version))
            agent.wait_ready()

            def settled() -> tuple[str, str] | None:
                for path, token, body in list(got):
                    for adapter in body["adapters"] if body["ready"] else []:  # type: ignore[attr-defined]
                        if (adapter.get("activeDigest"), adapter["state"]) == (version.digest, "Active"):
                            return path, token
                return None

            assert wait_for(settled, 10, "a report of readiness") == ("/v1/agents", "Bearer the-token")
    finally:
        server.shutdown()
        server.server_close()
