"""Send requests to an inference engine, and explain its errors and silence.

Imported by drivers only: the operator has no HTTP client.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from finetune_api.limits import quote
from finetune_api.reasons import Reason
from finetune_engines.base import EngineError, EngineState, EngineUnreachableError

QUICK_SECONDS = 5.0
"""Timeout of requests that an engine answers from memory."""
SLOW_SECONDS = 180.0
"""Timeout of requests that load weights or run the model: the engine may be busy, or compile a kernel first."""
KEEP_SECONDS = 2.0
"""How long an idle connection is kept. vLLM and SGLang (uvicorn) close it after 5 seconds, and a request that is sent
at that moment would look as if the engine had ended."""

TRY_LATER = (408, 429, 503)
"""Statuses of an engine that is busy: the request is not the cause."""

Question = tuple[Sequence[int], int]
"""A prompt, as token ids, and the id of the token that follows it."""


class EngineClient:
    """Sends requests to one engine; ``explain`` turns an error answer to a path into an EngineError."""

    def __init__(
        self, title: str, url: str, key: str | None, explain: Callable[[str, httpx.Response], EngineError]
    ) -> None:
        """Prepare connections to the engine of this title at ``url``; the API key is sent with each request."""
        self._title, self._key, self._explain = title, key, explain
        # the engine is in the same pod: proxies of the environment are for other services
        limits = httpx.Limits(keepalive_expiry=KEEP_SECONDS)
        self._client = httpx.AsyncClient(base_url=url, timeout=QUICK_SECONDS, limits=limits, trust_env=False)

    async def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str | None = None,
        seconds: float = QUICK_SECONDS,
    ) -> httpx.Response:
        """Send a request, with ``key`` in place of the client's API key if it is given; return the answer.

        Raises:
            EngineUnreachableError: If the engine does not answer within ``seconds``.
            EngineError: If it answers with an error.
        """
        url = f"{self._client.base_url}".rstrip("/") + path
        sent_key = key or self._key
        headers = {"Authorization": f"Bearer {sent_key}"} if sent_key else {}
        try:
            answer = await self._client.request(
                method, path, json=body, headers=headers, timeout=httpx.Timeout(seconds, connect=QUICK_SECONDS)
            )
        except httpx.ConnectError as error:
            raise EngineUnreachableError(
                f"nothing answers at {url}: the engine is starting, or has ended", ended=True
            ) from error
        except httpx.TimeoutException as error:
            raise EngineUnreachableError(
                f"{url} did not answer within {seconds:.0f} s: the engine is overloaded, or hangs"
            ) from error
        except httpx.TransportError as error:
            raise EngineUnreachableError(
                f"the connection to {url} broke ({type(error).__name__}): the engine has ended", unexplained=True
            ) from error
        if answer.is_success:
            return answer
        raise self._explain(path, answer)

    async def call_json(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float = QUICK_SECONDS
    ) -> dict[str, Any]:
        """Send a request, and return the JSON object that answers it.

        Raises as ``call``, and EngineError if the answer is no JSON object.
        """
        answer = await self.call(method, path, body, seconds=seconds)
        content = _read_object(answer)
        if content is None:
            raise EngineError(
                Reason.ENGINE_REFUSED,
                f"the service at {answer.request.url} is not {self._title}: "
                f"check spec.target.port (found {answer.text[:100]!r})",
                permanent=False,
            )
        return content

    async def list_models(self) -> EngineState:
        """Read ``GET /v1/models``: an adapter's card has a parent, the base's has none."""
        cards = (await self.call_json("GET", "/v1/models")).get("data", [])
        return EngineState(
            bases=tuple(str(card["id"]) for card in cards if not card.get("parent")),
            adapters={str(card["id"]): str(card.get("root") or "") for card in cards if card.get("parent")},
        )

    async def read_version(self, path: str) -> str | None:
        """Read the field ``version`` at a path; None if it is not there. Raises EngineUnreachableError."""
        try:
            version = (await self.call_json("GET", path)).get("version")
        except EngineUnreachableError:
            raise
        except EngineError:
            return None
        return str(version) if version else None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def ask_each(
    ask: Callable[[Sequence[int], int], Awaitable[float]], questions: Sequence[Question], at_once: int
) -> list[float]:
    """Ask for the log-probability of each question's token, ``at_once`` questions at a time."""
    slots = asyncio.Semaphore(at_once)

    async def ask_in_turn(prompt: Sequence[int], token: int) -> float:
        async with slots:
            return await ask(prompt, token)

    tasks = [asyncio.create_task(ask_in_turn(prompt, token)) for prompt, token in questions]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def refuse_samples(message: str) -> EngineError:
    """Return the error for golden samples that the engine's base cannot read; ``message`` is the engine's."""
    return EngineError(
        Reason.BASE_MODEL_MISMATCH,
        f"the engine's base cannot read the adapter's golden samples ({message}): "
        "serve the base model that the adapter was trained on",
        permanent=True,
    )


def read_error(answer: httpx.Response) -> tuple[str, str]:
    """Return type and message of an error answer; the start of its text if it is no JSON object.

    Engines answer flat (``{"message": …}``) or nested (``{"error": {"message": …}}``): both are read.
    """
    content = _read_object(answer)
    if content is None:
        return "", quote(answer.text) or answer.reason_phrase
    error = content["error"] if isinstance(content.get("error"), dict) else content
    message = next((error[key] for key in _MESSAGE_KEYS if error.get(key)), answer.text)
    return str(error.get("type") or ""), " ".join(str(message).split())[:1000]


_MESSAGE_KEYS = ("message", "error_message", "detail", "error")


def _read_object(answer: httpx.Response) -> dict[str, Any] | None:
    try:
        content = answer.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
