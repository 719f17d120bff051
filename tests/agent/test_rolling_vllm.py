"""The real vLLM as Rolling and the guard start it: with the adapter's directory, and closed to strangers."""

from pathlib import Path

import httpx
import pytest

from finetune_api.version_paths import version_directory
from tests.agent.guard import MIDDLEWARE, write_guard
from tests.agent.real_vllm import Publisher, loaded, text
from tests.agent.running_agent import RunningAgent
from tools.testing.s3_server import S3Server
from tools.testing.vllm_server import running_vllm
from tools.testing.waiting import free_port, wait_for

pytestmark = [pytest.mark.trains, pytest.mark.exhaustive, pytest.mark.timeout(1500)]

BOT = "support-bot"
STRANGER = "127.0.0.2"
"""An address of a client that is not in the pod."""
ROUTES = (
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/adapters"),
    ("DELETE", f"/adapters/{BOT}"),
    ("POST", "/invocations"),
)


def test_the_engine_starts_with_a_proven_adapter_that_no_stranger_changes(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    version = Publisher(s3_server, bucket)("first")
    guard = write_guard(tmp_path / "guard")
    with RunningAgent(tmp_path / "pod", s3_server, free_port()) as agent:
        path = version_directory(agent.settings.adapters_directory, BOT, version.digest)
        agent.want(agent.adapter(BOT, version), rolling=True)
        wait_for(path.is_dir, 120, "the adapter is downloaded")
        arguments = ["--lora-modules", f"{BOT}={path}", "--middleware", MIDDLEWARE]
        with running_vllm(tmp_path, arguments=arguments, packages=guard) as vllm:
            agent.engine_port = vllm.port
            agent.want(agent.adapter(BOT, version), rolling=True)
            agent.wait_ready(180)
            assert agent.wait_state(BOT, "Active").active_digest == version.digest
            answer = text(vllm, BOT)
            assert answer != text(vllm, "base")
            transport = httpx.HTTPTransport(local_address=STRANGER)
            with httpx.Client(base_url=vllm.url, transport=transport, timeout=20, trust_env=False) as stranger:
                body = {"lora_name": BOT, "lora_path": str(path), "name": BOT, "src": str(path)}
                for method, route in ROUTES:
                    refused = stranger.request(method, route, json=body)
                    assert refused.status_code == 403, (route, refused.text)
                assert stranger.get("/v1/models").is_success
            assert sorted(loaded(vllm)) == ["base", BOT]
            assert agent.ready()
            assert text(vllm, BOT) == answer
