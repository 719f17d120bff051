"""The agent beside a fake engine: the races and failures that users of other systems complain of, one test each."""

import contextlib
import json
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse

from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.uris import parse_s3_uri
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine
from tests.agent.running_agent import POD, RunningAgent
from tools.testing.s3_server import S3Server, write_secret
from tools.testing.waiting import wait_for

BOT = "support-bot"


def ask(engine: FakeEngine, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "prompt": [1, 2], **fields}
    return httpx.post(f"http://127.0.0.1:{engine.port}/v1/completions", json=body, timeout=60, trust_env=False)


def ask_until_it_ends(engine: FakeEngine, model: str) -> None:
    """Ask for a long answer, which the end of the test may cut off."""
    with contextlib.suppress(httpx.RemoteProtocolError):
        ask(engine, model, max_tokens=100)


def answer(engine: FakeEngine, model: str) -> float:
    logprobs = ask(engine, model)
    assert logprobs.status_code == 200, logprobs.text
    return float(logprobs.json()["choices"][0]["text"])


def short(version: DesiredVersion) -> str:
    return version.digest[7:19]


def test_the_name_appears_only_after_the_proof_beside_it(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    version = make(0.7)
    agent.want(agent.adapter(BOT, version))
    agent.wait_ready()
    assert answer(engine, BOT) == 0.7
    assert engine.calls[0] == ("load", f"{BOT}@{short(version)}")
    assert engine.calls[1] == ("load", BOT)
    standing = agent.wait_state(BOT, "Active")
    assert standing.active_digest == version.digest
    assert standing.load_seconds is not None
    assert standing.proof.startswith("100% of the trained effect is there")
    wait_for(lambda: sorted(engine.loaded) == [BOT], 5, "the candidate is gone again")


def test_200_from_the_engine_is_no_proof(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    agent.want(agent.adapter(BOT, make(0.7, applied=0.0)))
    standing = agent.wait_state(BOT, "Refused")
    assert standing.reason is Reason.PROOF_FAILED
    assert "0% of its effect" in standing.message
    assert ("load", BOT) not in engine.calls
    wait_for(lambda: engine.loaded == {}, 5, "the candidate is taken out")
    agent.wait_ready()  # the base goes on serving


def test_another_base_is_refused_before_anything_is_loaded(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    agent.want(agent.adapter(BOT, make(0.7, seed=2)))
    standing = agent.wait_state(BOT, "Refused")
    assert standing.reason is Reason.BASE_MODEL_MISMATCH
    assert engine.calls == []


def test_tokens_that_the_base_does_not_have_are_another_base(
    agent: RunningAgent, engine: FakeEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.agent.fake_engine.VOCABULARY", 5)
    agent.want(agent.adapter(BOT, make(0.7)))
    assert agent.wait_state(BOT, "Refused").reason is Reason.BASE_MODEL_MISMATCH


@pytest.mark.parametrize(
    ("settings", "reason", "message_part"),
    [
        ({"rank": 32}, Reason.RANK_TOO_HIGH, "--max-lora-rank 32"),
        ({"use_dora": True}, Reason.ADAPTER_UNSUPPORTED, "DoRA"),
        ({"bias": "all"}, Reason.ADAPTER_UNSUPPORTED, "bias"),
        ({"modules_to_save": ["lm_head"]}, Reason.ADAPTER_UNSUPPORTED, "lm_head"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            Reason.ADAPTER_UNSUPPORTED,
            "path_initial_model_for_weight_conversion",
        ),
        ({"peft_type": "VERA"}, Reason.ADAPTER_UNSUPPORTED, "VERA"),
    ],
)
def test_what_the_engine_cannot_serve_never_reaches_it(
    agent: RunningAgent, engine: FakeEngine, make: Make, settings: dict[str, object], reason: Reason, message_part: str
) -> None:
    agent.want(agent.adapter(BOT, make(0.7, **settings)), max_lora_rank=16)
    standing = agent.wait_state(BOT, "Refused")
    assert standing.reason is reason
    assert message_part in standing.message
    assert engine.calls == []


def test_the_engines_own_refusal_of_a_rank_is_final(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    """If the arguments do not say the maximum, the engine answers 500, which must not be tried for ever."""
    agent.want(agent.adapter(BOT, make(0.7, rank=32)))
    standing = agent.wait_state(BOT, "Refused")
    assert standing.reason is Reason.RANK_TOO_HIGH
    time.sleep(0.5)
    assert len(engine.calls) == 1


def test_errors_of_older_releases_mean_the_same(tmp_path: Path, s3_server: S3Server, make: Make) -> None:
    with FakeEngine(flat_errors=True) as engine, RunningAgent(tmp_path / "pod", s3_server, engine.port) as agent:
        agent.want(agent.adapter(BOT, make(0.7, rank=32)))
        assert agent.wait_state(BOT, "Refused").reason is Reason.RANK_TOO_HIGH


def test_one_bad_adapter_blocks_no_other(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    bad, good = make(0.7, applied=0.0), make(0.4)
    agent.want(agent.adapter("bad", bad), agent.adapter("good", good))
    agent.wait_state("bad", "Refused")
    agent.wait_state("good", "Active")
    agent.wait_ready()
    assert answer(engine, "good") == 0.4
    assert answer(engine, "base") == 0.0


def test_a_changed_object_is_refused_and_the_version_before_goes_on(
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
    standing = agent.wait_state(BOT, "Refused")
    assert standing.reason is Reason.DIGEST_MISMATCH
    assert standing.active_digest == first.digest
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


def test_an_only_pod_stays_in_the_service_while_the_name_moves(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    first, second = make(0.7), make(0.9)
    agent.want(agent.adapter(BOT, first, drain=False))
    agent.wait_ready()
    statuses: list[int] = []
    agent.want(agent.adapter(BOT, second, previous=first, drain=False))
    while agent.standing(BOT).active_digest != second.digest:
        statuses.append(agent.probe()[0])
    assert set(statuses) == {200}
    assert answer(engine, BOT) == 0.9


def test_a_version_that_fails_under_the_served_name_gives_way_to_the_one_before(
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
    while agent.standing(BOT).state != "Refused" or not agent.ready():
        before, status, after = engine.loaded.get(BOT), agent.probe()[0], engine.loaded.get(BOT)
        if before == after == new:
            held = True
            assert status == 503  # what has the name is not proven
    assert held
    standing = agent.wait_active(BOT, first)
    assert (standing.state, standing.reason, standing.active_digest) == ("Refused", Reason.PROOF_FAILED, first.digest)
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


def test_after_a_restart_of_the_engine_everything_is_proven_again(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    agent.want(agent.adapter("one", make(0.7)), agent.adapter("two", make(0.4)))
    agent.wait_ready()
    engine.kill()
    assert agent.probe()[0] == 503
    assert agent.wait_state("one", "Pending").reason is Reason.ENGINE_UNREACHABLE
    engine.start()
    assert agent.probe()[0] == 503
    agent.wait_ready()
    assert answer(engine, "one") == 0.7
    assert answer(engine, "two") == 0.4


def test_a_restart_that_nobody_saw_is_noticed(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    """The engine itself has loaded the names again, but its new process has proven nothing."""
    version = make(0.7)
    agent.want(agent.adapter(BOT, version))
    agent.wait_ready()
    engine.started += 1
    engine.effects[BOT] = 0.0
    standing = agent.wait_state(BOT, "Refused")
    assert standing.reason is Reason.PROOF_FAILED


def test_a_name_that_somebody_unloaded_makes_the_pod_unready_at_once(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    agent.want(agent.adapter(BOT, make(0.7)))
    agent.wait_ready()
    engine.fail_load = lambda name, path: JSONResponse({"error": {"message": "busy", "type": "x", "code": 503}}, 503)
    del engine.loaded[BOT]
    assert agent.probe()[0] == 503
    engine.fail_load = lambda name, path: None
    agent.wait_ready()


def test_after_a_restart_of_the_agent_the_pod_serves_on_after_a_new_proof(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    agent.want(agent.adapter(BOT, make(0.7)))
    agent.wait_ready()
    agent.stop()
    calls = list(engine.calls)
    agent.start()
    agent.wait_ready()
    assert engine.calls == calls  # proven where it was: nothing was loaded again


def test_an_engine_that_an_adapter_ends_is_not_ended_for_ever(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    """A kernel that crashes on one adapter would take the pod down at every restart."""
    good, deadly = make(0.4), make(0.7)
    agent.want(agent.adapter("good", good))
    agent.wait_ready()

    engine.deadly = (BOT,)
    agent.want(agent.adapter("good", good), agent.adapter(BOT, deadly))
    while agent.standing(BOT).state != "Refused":
        wait_for(lambda: not engine.alive or agent.standing(BOT).state == "Refused", 30, "the engine ends")
        if not engine.alive:
            engine.kill()
            engine.start()
    wait_for(lambda: not engine.alive, 10, "the last end")
    engine.kill()
    engine.start()
    agent.wait_ready()
    assert answer(engine, "good") == 0.4
    assert [name.partition("@")[0] for _, name in engine.calls].count(BOT) == 3


def test_s3_away_is_tried_again(agent: RunningAgent, engine: FakeEngine, make: Make, tmp_path: Path) -> None:
    other_server = S3Server(tmp_path / "other-s3")
    version = make(0.7)
    shutil.copytree(agent.s3.buckets, other_server.buckets, dirs_exist_ok=True)
    agent.want(agent.adapter(BOT, version, endpoint=other_server.endpoint))
    standing = agent.wait_state(BOT, "Failed")
    assert standing.reason is Reason.DOWNLOAD_FAILED
    assert other_server.endpoint in standing.message
    assert not agent.ready()
    with other_server:
        agent.wait_ready()


def test_wrong_credentials_are_told_and_mended_by_a_new_secret(agent: RunningAgent, make: Make) -> None:
    secret = agent.settings.secrets_directory / "s3-credentials"
    right = {path.name: path.read_text() for path in secret.iterdir()}
    write_secret(secret, "nobody", "nothing-of-value")
    agent.want(agent.adapter(BOT, make(0.7)))
    standing = agent.wait_state(BOT, "Failed")
    assert standing.reason is Reason.ADAPTER_ACCESS_DENIED
    assert "nothing-of-value" not in standing.message
    for name, text in right.items():
        (secret / name).write_text(text)
    agent.wait_ready()


def test_an_adapter_that_keeps_failing_gives_way_to_one_that_is_proven(
    agent: RunningAgent, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_agent.readiness.GIVE_WAY_AFTER", 2)
    lost = make(0.7)
    agent.want(
        agent.adapter("lost", DesiredVersion(uri=lost.uri + "-gone", digest=lost.digest)),
        agent.adapter("good", make(0.4)),
    )
    agent.wait_state("good", "Active")
    assert not agent.ready()
    agent.wait_ready()
    assert agent.standing("lost").state in ("Failed", "Downloading")


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


def test_a_name_of_the_users_own_is_left_alone(
    agent: RunningAgent, engine: FakeEngine, make: Make, tmp_path: Path
) -> None:
    engine.loaded[BOT], engine.effects[BOT] = "/models/by-hand", 0.1
    agent.want(agent.adapter(BOT, make(0.7)), agent.adapter("base", make(0.8)))
    assert agent.wait_state(BOT, "Refused").reason is Reason.SERVED_NAME_TAKEN
    assert agent.wait_state("base", "Refused").reason is Reason.SERVED_NAME_TAKEN
    agent.wait_ready()
    assert engine.loaded == {BOT: "/models/by-hand"}


def test_an_engine_without_lora_is_told_with_the_remedy(tmp_path: Path, s3_server: S3Server, make: Make) -> None:
    engine = FakeEngine()
    engine.lora_routes = False
    with engine, RunningAgent(tmp_path / "pod", s3_server, engine.port) as agent:
        agent.want(agent.adapter(BOT, make(0.7)))
        standing = agent.wait_state(BOT, "Refused")
        assert standing.reason is Reason.LORA_DISABLED
        assert "--enable-lora" in standing.message
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in standing.message


def test_an_engine_that_tells_only_of_what_is_allowed_is_no_proof(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    engine.raw_logprobs = False
    agent.want(agent.adapter(BOT, make(0.7)))
    standing = agent.wait_state(BOT, "Refused")
    assert standing.reason is Reason.ENGINE_REFUSED
    assert "--logprobs-mode raw_logprobs" in standing.message


def test_an_engine_that_asks_for_a_key_gets_it(tmp_path: Path, s3_server: S3Server, make: Make) -> None:
    with FakeEngine(api_key="sesame") as engine, RunningAgent(tmp_path / "pod", s3_server, engine.port) as agent:
        agent.want(agent.adapter(BOT, make(0.7)), api_key_secret="engine-key")
        time.sleep(0.5)
        assert not agent.ready()
        key = agent.settings.secrets_directory / "engine-key"
        key.mkdir()
        (key / "API_KEY").write_text("sesame\n")
        agent.wait_ready()


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
