"""The inference Service as its clients use it."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.namespace import Namespace
from tests.e2e.own import address

PROMPT = "KING HENRY.\n"
BASE = "smollm2"
ANSWER_SECONDS = 60.0
PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Engine:
    """An OpenAI-compatible service at an address."""

    address: str

    def answer(self, model: str, prompt: str = PROMPT, tokens: int = 24) -> str:
        """What the model makes of the prompt, its most likely token each time. Raises httpx.HTTPError."""
        with self._client() as client:
            answer = client.post("/v1/completions", json=_body(model, prompt, tokens))
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["text"])

    def stream(self, model: str, prompt: str = PROMPT, tokens: int = 24) -> "Streamed":
        """The same, token by token as it is made. Raises nothing: what went wrong is in the result."""
        result = Streamed()
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
        """The names that it serves."""
        with self._client() as client:
            return [model["id"] for model in client.get("/v1/models").json()["data"]]

    def _client(self) -> httpx.Client:
        # A connection of its own for each request, so that each is balanced anew; and never through a proxy.
        return httpx.Client(base_url=self.address, timeout=ANSWER_SECONDS, trust_env=False)


@dataclass
class Streamed:
    """One streamed answer: HTTP status (0: no connection), text, why it ended, and the error that cut it off, if one did."""

    status: int = 0
    text: str = ""
    finish: str = ""
    error: str = ""


def _take(result: Streamed, line: str) -> None:
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
    """What clients got that ask again and again."""

    answers: list[Streamed] = field(default_factory=list)

    @property
    def whole(self) -> list[str]:
        """The texts of the answers that came to their end."""
        return [answer.text for answer in self.answers if answer.finish]

    @property
    def cut_off(self) -> list[Streamed]:
        """The answers that began and did not end."""
        return [answer for answer in self.answers if answer.text and not answer.finish]


@contextmanager
def clients(engine: Engine, model: str, number: int, tokens: int) -> Iterator[Clients]:
    """So many clients stream answers, one after another, for the block; each finishes its last one."""
    found, ended = Clients(), threading.Event()

    def work() -> None:
        while not ended.is_set():
            found.answers.append(engine.stream(model, tokens=tokens))
            time.sleep(PAUSE_SECONDS)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def engine_of(namespace: Namespace, service: str = "vllm") -> Engine:
    """The engine behind a Service."""
    return Engine(address(namespace, service, 8000))
