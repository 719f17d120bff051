"""Talk to one running vLLM: its paths, and what its answers mean.

An adapter is never loaded in place: a running request would then end on other weights than those with which it began.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import httpx

from finetune_api.reasons import Reason
from finetune_engines.base import EngineError, EngineState, EngineUnreachableError
from finetune_engines.vllm.refusals import explain_refusal

QUICK_SECONDS = 5.0
"""Timeout of requests that vLLM answers from memory."""
SLOW_SECONDS = 180.0
"""Timeout of requests that load weights or run the model: vLLM may be busy, or compile a kernel first."""
PARALLEL_REQUESTS = 8
"""Most requests of one proof at a time: vLLM computes them together, and its clients do not wait."""

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class VllmDriver:
    """Driver of one vLLM server."""

    def __init__(self, url: str, api_key: str | None) -> None:
        """Prepare connections to ``url``; the API key is sent with each request."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # the engine is in the same pod: proxies of the environment are for other services
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=QUICK_SECONDS, trust_env=False)

    async def list_models(self) -> EngineState:
        """Read ``GET /v1/models``: an adapter's card has a parent, the base's has none."""
        answer = await self._call("GET", "/v1/models")
        cards = _parse_json(answer).get("data", [])
        return EngineState(
            bases=tuple(str(card["id"]) for card in cards if not card.get("parent")),
            adapters={str(card["id"]): str(card.get("root") or "") for card in cards if card.get("parent")},
        )

    async def inspect(self) -> EngineState:
        """Return the models, and as identity the start time of the process, which ``GET /metrics`` tells."""
        models = await self.list_models()
        metrics = _parse_metrics((await self._call("GET", "/metrics")).text)
        start_time = next((value for name, _, value in metrics if name == "process_start_time_seconds"), None)
        return EngineState(models.bases, models.adapters, identity="" if start_time is None else str(start_time))

    async def read_version(self) -> str | None:
        """Read ``GET /version``, which needs no API key."""
        try:
            version = _parse_json(await self._call("GET", "/version")).get("version")
        except EngineUnreachableError:
            raise
        except EngineError:
            return None
        return str(version) if version else None

    async def load_adapter(self, name: str, path: str) -> None:
        """Send ``POST /v1/load_lora_adapter``."""
        await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, seconds=SLOW_SECONDS)

    async def unload_adapter(self, name: str) -> None:
        """Send ``POST /v1/unload_lora_adapter``. Running requests finish on the weights with which they began."""
        try:
            await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except EngineError:
            if name in (await self.list_models()).adapters:
                raise

    async def logprobs(self, model: str, questions: Sequence[tuple[Sequence[int], int]]) -> list[float]:
        """Ask for one token each, and allow no other token: ordinary requests, a few at a time.

        ``prompt_logprobs`` would need one request for a whole prompt. But vLLM 0.32 on CPUs ends when another request
        is in the same batch (lora/punica_wrapper: the sampler's indices do not fit the prompt's rows).
        """
        slots = asyncio.Semaphore(PARALLEL_REQUESTS)

        async def ask(prompt: Sequence[int], token: int) -> float:
            async with slots:
                return await self._logprob(model, prompt, token)

        tasks = [asyncio.create_task(ask(prompt, token)) for prompt, token in questions]
        try:
            values = list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
        if values and not any(values):
            raise EngineError(
                Reason.ENGINE_REFUSED,
                "the engine gives the log-probabilities of the allowed tokens, not those that it computed: "
                "start vLLM with --logprobs-mode raw_logprobs, its default",
                permanent=True,
            )
        return values

    async def _logprob(self, model: str, prompt: Sequence[int], token: int) -> float:
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": 1,
            "temperature": 0,
            "ignore_eos": True,
            "allowed_token_ids": [token],
            "logprobs": 1,
        }
        answer = _parse_json(await self._call("POST", "/v1/completions", body, seconds=SLOW_SECONDS))
        values = (answer["choices"][0].get("logprobs") or {}).get("token_logprobs")
        if not values or values[0] is None:
            raise EngineError(
                Reason.ENGINE_REFUSED,
                "the engine does not return logprobs, by which an adapter is proven: "
                "start vLLM with --max-logprobs 1 or more",
                permanent=True,
            )
        return float(values[0])

    async def busy_adapters(self) -> frozenset[str]:
        """Read the metric ``vllm:lora_requests_info``.

        Its value is the time of the sample, so the series with the highest value is the current one.
        """
        samples = [
            sample
            for sample in _parse_metrics((await self._call("GET", "/metrics")).text)
            if sample[0] == "vllm:lora_requests_info"
        ]
        if not samples:
            return frozenset()
        _, labels, _ = max(samples, key=lambda sample: sample[2])
        names = f"{labels.get('running_lora_adapters', '')},{labels.get('waiting_lora_adapters', '')}"
        return frozenset(name for name in names.split(",") if name)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = QUICK_SECONDS
    ) -> httpx.Response:
        url = f"{self._client.base_url}".rstrip("/") + path
        try:
            answer = await self._client.request(
                method, path, json=body, timeout=httpx.Timeout(seconds, connect=QUICK_SECONDS)
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
        raise explain_refusal(path, answer)


def _parse_json(answer: httpx.Response) -> dict[str, Any]:
    """Return the answer's JSON object. Raises EngineError if it is none: then no vLLM answered."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise EngineError(
            Reason.ENGINE_REFUSED,
            f"the service at {answer.request.url} is no vLLM: check spec.target.port (found {answer.text[:100]!r})",
            permanent=False,
        )
    return body


def _parse_metrics(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Return the samples of a Prometheus exposition that the driver needs: name, labels, value."""
    samples = []
    for line in text.splitlines():
        if not line.startswith(("vllm:lora_requests_info", "process_start_time_seconds")):
            continue
        head, _, value = line.rpartition(" ")
        name, _, labels = head.partition("{")
        samples.append((name, dict(_LABEL.findall(labels)), float(value)))
    return samples
