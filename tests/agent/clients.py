"""Clients of a fake engine, as users of the served adapters."""

import contextlib

import httpx

from finetune_api.messages import DesiredVersion
from tests.agent.fake_engine import FakeEngine

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
