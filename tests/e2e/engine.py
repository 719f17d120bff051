"""Use the inference Service as its clients do."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.namespace import Namespace
from tests.e2e.users_cluster import address

PROMPT = "KING HENRY.\n"
BASE = "smollm2"
ANSWER_SECONDS = 60.0
PAUSE_SECONDS = 0.1
# After a roll-out kube-proxy may still send a connection to the pod before, which is gone. 0, 0.5, 1, 2 and 4 seconds.
CONNECTS_AGAIN = 5


@dataclass(frozen=True)
class Engine:
    """An OpenAI-compatible service at an address."""

    address: str

    def answer(self, model: str, prompt: str = PROMPT, tokens: int = 24) -> str:
        """Return how the model continues a prompt, with the likeliest token each time. Raises httpx.HTTPError."""
        with self._client(CONNECTS_AGAIN) as client:
            answer = client.post("/v1/completions", json=_body(model, prompt, tokens))
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["text"])

    def stream(self, model: str, prompt: str = PROMPT, tokens: int = 24) -> "StreamedAnswer":
        """Return the same as it is streamed token by token; an error is in the result, not raised."""
        result = StreamedAnswer()
        try:
            with (
                self._client() as client,
                client.stream("POST", "/v1/completions", json=_body(model, prompt, tokens, stream=True)) as answer,
            ):
                result.status = answer.status_code
                for line in answer.iter_lines():
                    _take(result, line)
        except httpx.HTTPError as error:
            result.error = f"{type(error).__name__}: {error}"
        return result

    def models(self) -> list[str]:
        """Return the names of the served models."""
        with self._client(CONNECTS_AGAIN) as client:
            return [model["id"] for model in client.get("/v1/models").json()["data"]]

    def _client(self, connects_again: int = 0) -> httpx.Client:
        # A connection of its own for each request, so that each is balanced anew; and never through a proxy.
        transport = httpx.HTTPTransport(retries=connects_again, trust_env=False)
        return httpx.Client(base_url=self.address, timeout=ANSWER_SECONDS, trust_env=False, transport=transport)


@dataclass
class StreamedAnswer:
    """One streamed answer: HTTP status (0: no connection), text, finish reason, and the error that cut it off."""

    status: int = 0
    text: str = ""
    finish: str = ""
    error: str = ""


def _take(result: StreamedAnswer, line: str) -> None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        result.error = json.dumps(event["error"])
        return
    choice = event["choices"][0]
    result.text += choice["text"]
    result.finish = choice["finish_reason"] or result.finish


def _body(model: str, prompt: str, tokens: int, *, stream: bool = False) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }


@dataclass
class Clients:
    """The answers that clients got which ask again and again."""

    answers: list[StreamedAnswer] = field(default_factory=list)

    @property
    def whole(self) -> list[str]:
        """Return the texts of the complete answers."""
        return [answer.text for answer in self.answers if answer.finish]

    @property
    def cut_off(self) -> list[StreamedAnswer]:
        """Return the answers that began and did not end."""
        return [answer for answer in self.answers if answer.text and not answer.finish]


@contextmanager
def clients(engine: Engine, model: str, number: int, tokens: int) -> Iterator[Clients]:
    """Let a number of clients stream answers for the block, one after another; each finishes its last one."""
    client_answers, stop = Clients(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            client_answers.answers.append(engine.stream(model, tokens=tokens))
            time.sleep(PAUSE_SECONDS)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield client_answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def engine_of(namespace: Namespace, service: str = "vllm") -> Engine:
    """Return the engine of a Service."""
    return Engine(address(namespace, service, 8000))
