"""Talk to one running vLLM: its paths, and what its answers mean.

An adapter is never loaded in place: a running request would then end on other weights than those with which it began.
"""

import re
from collections.abc import Sequence

from finetune_api.reasons import Reason
from finetune_engines.base import EngineError, EngineKeys, EngineState, EngineUnreachableError
from finetune_engines.client import SLOW_SECONDS, EngineClient, Question, ask_each
from finetune_engines.vllm.refusals import explain_refusal

_METRICS = ("vllm:lora_requests_info", "vllm:engine_sleep_state", "process_start_time_seconds")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class VllmDriver:
    """Driver of one vLLM server."""

    def __init__(self, url: str, keys: EngineKeys) -> None:
        """Prepare connections to ``url``; the key of the clients is sent with each request."""
        self._client = EngineClient("vLLM", url, keys.api, explain_refusal)
        self._asleep = False
        self._wakes = 0

    async def list_models(self) -> EngineState:
        """Read ``GET /v1/models``."""
        return await self._client.list_models()

    async def inspect(self) -> EngineState:
        """Return the models, and as identity the start time of the process and how often it was seen to wake.

        Both are in ``GET /metrics``. An engine may wake from sleep with other weights than it had (vllm#53888).
        """
        models = await self.list_models()
        metrics = _parse_metrics((await self._client.call("GET", "/metrics")).text)
        start_time = next((value for name, _, value in metrics if name == "process_start_time_seconds"), None)
        asleep = any(
            name == "vllm:engine_sleep_state" and labels.get("sleep_state") == "awake" and not value
            for name, labels, value in metrics
        )
        self._wakes += self._asleep and not asleep
        self._asleep = asleep
        if asleep:
            raise EngineUnreachableError("the engine sleeps (POST /sleep): it answers no request before it is woken")
        identity = "" if start_time is None else f"{start_time}-{self._wakes}"
        return EngineState(models.bases, models.adapters, identity)

    async def read_version(self) -> str | None:
        """Read ``GET /version``."""
        return await self._client.read_version("/version")

    async def load_adapter(self, name: str, path: str) -> None:
        """Send ``POST /v1/load_lora_adapter``."""
        body = {"lora_name": name, "lora_path": path}
        await self._client.call("POST", "/v1/load_lora_adapter", body, seconds=SLOW_SECONDS)

    async def unload_adapter(self, name: str) -> None:
        """Send ``POST /v1/unload_lora_adapter``. Running requests finish on the weights with which they began."""
        try:
            await self._client.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except EngineError:
            if name in (await self.list_models()).adapters:
                raise

    async def logprobs(self, model: str, questions: Sequence[Question], *, at_once: int) -> list[float]:
        """Ask for one token after each prompt, and allow only the question's token.

        Up to ``at_once`` ordinary requests run at the same time.

        ``prompt_logprobs`` would need one request for a whole prompt. But vLLM 0.32 on CPUs ends when another request
        is in the same batch (lora/punica_wrapper: the sampler's indices do not fit the prompt's rows).
        """
        values = await ask_each(lambda prompt, token: self._logprob(model, prompt, token), questions, at_once)
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
        answer = await self._client.call_json("POST", "/v1/completions", body, seconds=SLOW_SECONDS)
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
            for sample in _parse_metrics((await self._client.call("GET", "/metrics")).text)
            if sample[0] == "vllm:lora_requests_info"
        ]
        if not samples:
            return frozenset()
        _, labels, _ = max(samples, key=lambda sample: sample[2])
        names = f"{labels.get('running_lora_adapters', '')},{labels.get('waiting_lora_adapters', '')}"
        return frozenset(name for name in names.split(",") if name)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _parse_metrics(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Return the samples of a Prometheus exposition that the driver needs: name, labels, value."""
    samples = []
    for line in text.splitlines():
        if not line.startswith(_METRICS):
            continue
        head, _, value = line.rpartition(" ")
        name, _, labels = head.partition("{")
        samples.append((name, dict(_LABEL.findall(labels)), float(value)))
    return samples
