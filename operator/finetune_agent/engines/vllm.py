"""The driver for vLLM: its paths, its answers, and what its refusals mean. Nothing else in the agent knows them.

Old releases answer errors flat (``{"object": "error", "message": …}``), new ones nested (``{"error": {…}}``): both are read.
An adapter is never loaded in place: a request in flight would then end on other weights than it began with.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import httpx

from finetune_agent.engines.base import EngineError, EngineUnreachableError, EngineView
from finetune_api.reasons import Reason

QUICK_SECONDS = 5.0
"""Time for an answer from memory."""
SLOW_SECONDS = 180.0
"""Time for loading weights and for a forward pass: an engine may be busy, or compile a kernel at the first one."""
AT_ONCE = 8
"""So many of a proof's requests may be under way: an engine computes them together, and its clients are not held up."""

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_UNSUPPORTED = (
    "does not yet support",
    "does not support",
    "only supports",
    "unsupported",
    "expected target modules",
    "must be consistent with the base model",
    "doesn't contain tensors",
    "size mismatch",
    "shape",
    "must match the size of tensor",
    "rank_pattern",
    "modules_to_save",
)
"""Parts of vLLM's messages about an adapter that it cannot serve, whoever asks how often."""


class Vllm:
    """One vLLM server."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # the engine is in the same pod: a proxy that the environment names is for others
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=QUICK_SECONDS, trust_env=False)

    async def models(self) -> EngineView:
        """``GET /v1/models``: an adapter's card has a parent, the base's has none."""
        answer = await self._call("GET", "/v1/models")
        cards = _json(answer).get("data", [])
        return EngineView(
            bases=tuple(str(card["id"]) for card in cards if not card.get("parent")),
            adapters={str(card["id"]): str(card.get("root") or "") for card in cards if card.get("parent")},
        )

    async def view(self) -> EngineView:
        """The models, and the start time of the server's process, which /metrics tells."""
        models = await self.models()
        metrics = _samples((await self._call("GET", "/metrics")).text)
        started = next((value for name, _, value in metrics if name == "process_start_time_seconds"), None)
        return EngineView(models.bases, models.adapters, identity="" if started is None else str(started))

    async def load(self, name: str, path: str) -> None:
        """``POST /v1/load_lora_adapter``."""
        await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, seconds=SLOW_SECONDS)

    async def unload(self, name: str) -> None:
        """``POST /v1/unload_lora_adapter``. It drops the name: requests in flight finish on the weights that they began with."""
        try:
            await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except EngineError:
            if name in (await self.models()).adapters:
                raise

    async def logprobs(self, model: str, asked: Sequence[tuple[Sequence[int], int]]) -> list[float]:
        """Each is a completion of one token, with no other token allowed: an ordinary request, some at a time.

        ``prompt_logprobs`` would need one request for a whole prompt, but vLLM 0.32 on CPUs dies of it as soon as another request is in
        the same batch (lora/punica_wrapper: the sampler's indices do not fit the prompt's rows).
        """
        limit = asyncio.Semaphore(AT_ONCE)

        async def ask(prompt: Sequence[int], token: int) -> float:
            async with limit:
                return await self._logprob(model, prompt, token)

        tasks = [asyncio.create_task(ask(prompt, token)) for prompt, token in asked]
        try:
            found = list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
        if found and not any(found):
            raise EngineError(
                Reason.ENGINE_REFUSED,
                "the engine gives the log-probabilities of what is allowed, not of what it computed: start vLLM with --logprobs-mode raw_logprobs, its default",
                permanent=True,
            )
        return found

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
        answer = _json(await self._call("POST", "/v1/completions", body, seconds=SLOW_SECONDS))
        values = (answer["choices"][0].get("logprobs") or {}).get("token_logprobs")
        if not values or values[0] is None:
            raise EngineError(
                Reason.ENGINE_REFUSED,
                "the engine does not return logprobs, by which an adapter is proven: start vLLM with --max-logprobs 1 or more",
                permanent=True,
            )
        return float(values[0])

    async def busy(self) -> frozenset[str]:
        """``vllm:lora_requests_info``: its value is the time of the sample, so the newest series is the present."""
        samples = [
            item
            for item in _samples((await self._call("GET", "/metrics")).text)
            if item[0] == "vllm:lora_requests_info"
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
                f"nothing answers at {url}: the engine is starting, or has ended", gone=True
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
        raise refusal(path, answer)


def refusal(path: str, answer: httpx.Response) -> EngineError:
    """What an error answer means: its reason, a message with the remedy, and whether the same request can ever succeed."""
    kind, message = _error(answer)
    status = answer.status_code
    said = f"the engine answered {status} to {path}: {message}"
    if status in (401, 403):
        return EngineError(
            Reason.ENGINE_REFUSED,
            f"{said}; name the Secret that has the engine's API_KEY in spec.target.apiKeySecretRef",
            permanent=False,
        )
    if status in (404, 405) and path.endswith("lora_adapter") and kind != "NotFoundError":
        return EngineError(
            Reason.LORA_DISABLED,
            "the engine has no route for loading adapters: start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            permanent=True,
        )
    if "greater than max_lora_rank" in message:
        return EngineError(
            Reason.RANK_TOO_HIGH,
            f"{message}; start vLLM with a higher --max-lora-rank, or train with a lower rank",
            permanent=True,
        )
    if "conflicts with a served base model" in message:
        return EngineError(Reason.SERVED_NAME_TAKEN, f"{message}; choose another servedName", permanent=True)
    if "out of vocabulary" in message or "maximum context length" in message:
        return EngineError(
            Reason.BASE_MODEL_MISMATCH,
            f"the engine's base cannot read the adapter's golden samples ({message}): serve the base model that the adapter was trained on",
            permanent=True,
        )
    if status == 404 and "No adapter found" in message:
        return EngineError(
            Reason.ENGINE_REFUSED,
            f"{said}; the engine's container must be able to read the volume at that path",
            permanent=False,
        )
    if path.endswith("load_lora_adapter") and any(part in message.lower() for part in _UNSUPPORTED):
        return EngineError(Reason.ADAPTER_UNSUPPORTED, f"vLLM cannot serve this adapter: {message}", permanent=True)
    return EngineError(Reason.ENGINE_REFUSED, said, permanent=False, unexplained=status not in (408, 429, 503))


def _error(answer: httpx.Response) -> tuple[str, str]:
    """Type and message of an error answer; the start of the text where it is no JSON object."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return "", answer.text.strip()[:300] or answer.reason_phrase
    error = body["error"] if isinstance(body.get("error"), dict) else body
    message = error.get("message") or error.get("detail") or error.get("error") or answer.text
    return str(error.get("type") or ""), " ".join(str(message).split())[:1000]


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise EngineError(
            Reason.ENGINE_REFUSED,
            f"what answers at {answer.request.url} is no vLLM: check spec.target.port (found {answer.text[:100]!r})",
            permanent=False,
        )
    return body


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    """The samples of a Prometheus exposition that carry a value: name, labels, value."""
    found = []
    for line in text.splitlines():
        if not line.startswith(("vllm:lora_requests_info", "process_start_time_seconds")):
            continue
        head, _, value = line.rpartition(" ")
        name, _, labels = head.partition("{")
        found.append((name, dict(_LABEL.findall(labels)), float(value)))
    return found
