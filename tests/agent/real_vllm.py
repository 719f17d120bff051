"""What tests of the agent ask of the real vLLM, and the adapters that they give it."""

import json
from pathlib import Path

import httpx

from finetune_api.messages import DesiredVersion
from tests.agent.adapters import adapters
from tests.agent.running_agent import RunningAgent, publish
from tools.testing.s3_server import S3Server
from tools.testing.vllm_server import RealVllm

PROMPT = "Once upon a time there was a king who"
TOKENS = 40


class Publisher:
    """Puts the tests' adapters into S3."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        """Take the bucket that versions go to."""
        self.server, self.bucket = server, bucket

    def __call__(self, name: str) -> DesiredVersion:
        """Publish one of ``adapters()``."""
        return publish(self.server, self.bucket, name, adapters() / name)


def agent_beside(vllm: RealVllm, directory: Path, server: S3Server) -> RunningAgent:
    """Return an agent with an empty volume, for a ``with`` block; it waits for less than in a cluster."""
    return RunningAgent(directory, server, vllm.port, tick_seconds=0.2, propagation_seconds=1.0, removal_seconds=0.5)


def loaded(vllm: RealVllm) -> dict[str, str]:
    """Return name and path of each model that the engine serves."""
    cards = httpx.get(f"{vllm.url}/v1/models", timeout=20, trust_env=False).json()["data"]
    return {card["id"]: card["root"] for card in cards}


def text(vllm: RealVllm, model: str, tokens: int = TOKENS) -> str:
    """Return the text of one streamed answer; fail if the status is not 200."""
    answer = vllm.complete(model, PROMPT, tokens)
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)
