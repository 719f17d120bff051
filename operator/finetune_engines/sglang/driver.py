"""Talk to one running SGLang: its paths, and what its answers mean.

Adapters are loaded pinned: SGLang unloads others silently when it has more than --max-loaded-loras. A request for a
name that was unloaded makes it load the same path again, so that a name may come back while it moves.
"""

import json
from collections.abc import Sequence

from finetune_api.reasons import Reason
from finetune_engines.base import EngineError, EngineKeys, EngineState, EngineUnreachableError
from finetune_engines.client import SLOW_SECONDS, EngineClient, Question, ask_each
from finetune_engines.sglang.refusals import LOAD, NAME_IN_USE, UNLOAD, explain_refusal

MAX_LOADS = 3
"""Attempts to load under a name that SGLang loads again by itself, because clients ask for it."""


class SglangDriver:
    """Driver of one SGLang server."""

    def __init__(self, url: str, keys: EngineKeys) -> None:
        """Prepare connections to ``url``. Adapters are loaded with the key of the admin, if there is one."""
        self._client = EngineClient("SGLang", url, keys.api, explain_refusal)
        self._admin_key = keys.admin

    async def list_models(self) -> EngineState:
        """Read ``GET /v1/models``."""
        return await self._client.list_models()

    async def inspect(self) -> EngineState:
        """Return the models, and as identity the random seed and the start-up time of the process."""
        models = await self.list_models()
        info = await self._client.call_json("GET", "/server_info")
        identity = json.dumps([info.get("random_seed"), info.get("startup_time")], sort_keys=True)
        return EngineState(models.bases, models.adapters, identity)

    async def read_version(self) -> str | None:
        """Read the version from ``GET /server_info``."""
        return await self._client.read_version("/server_info")

    async def load_adapter(self, name: str, path: str) -> None:
        """Send ``POST /load_lora_adapter``; unload the name first if a request made SGLang load it again."""
        body = {"lora_name": name, "lora_path": path, "pinned": True}
        for remaining in reversed(range(MAX_LOADS)):
            try:
                await self._client.call("POST", LOAD, body, key=self._admin_key, seconds=SLOW_SECONDS)
            except EngineError as error:
                if remaining and any(part in error.message for part in NAME_IN_USE):
                    await self.unload_adapter(name)
                    continue
                raise
            return

    async def unload_adapter(self, name: str) -> None:
        """Send ``POST /unload_lora_adapter``, which waits until the adapter's running requests have ended."""
        try:
            await self._client.call("POST", UNLOAD, {"lora_name": name}, key=self._admin_key, seconds=SLOW_SECONDS)
        except EngineUnreachableError as error:
            if error.ended or error.unexplained:
                raise
            raise EngineError(
                Reason.RESTART_REQUIRED,
                f"SGLang did not unload {name} within {SLOW_SECONDS:.0f} s: its requests run on, or it hangs for good "
                "(sglang#36894). Restart its container; a livenessProbe on /enginez of the agent's port 9480 does so",
                permanent=False,
            ) from error
        except EngineError:
            if name in (await self.list_models()).adapters:
                raise

    async def logprobs(self, model: str, questions: Sequence[Question], *, at_once: int) -> list[float]:
        """Ask ``POST /generate`` for one token, and for the log-probability of the question's token there."""
        adapter = None if model in (await self.list_models()).bases else model
        return await ask_each(lambda prompt, token: self._logprob(adapter, prompt, token), questions, at_once)

    async def _logprob(self, adapter: str | None, prompt: Sequence[int], token: int) -> float:
        body = {
            "input_ids": list(prompt),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True},
            "return_logprob": True,
            "token_ids_logprob": [token],
            "lora_path": adapter,
        }
        answer = await self._client.call_json("POST", "/generate", body, seconds=SLOW_SECONDS)
        try:
            [[logprob, answered_token, *_]] = answer["meta_info"]["output_token_ids_logprobs"][0]
        except (KeyError, IndexError, TypeError, ValueError):
            logprob = answered_token = None
        if logprob is None or answered_token != token:
            raise EngineError(
                Reason.ENGINE_REFUSED,
                "the engine does not return log-probabilities of given tokens (token_ids_logprob), by which an adapter "
                "is proven: start SGLang without speculative decoding",
                permanent=True,
            )
        return float(logprob)

    async def busy_adapters(self) -> frozenset[str]:
        """Read ``GET /v1/loads``. It counts running requests, but not by adapter, so any adapter may be busy."""
        loads = (await self._client.call_json("GET", "/v1/loads?include=core")).get("loads", [])
        requests = sum(load.get("num_running_reqs", 0) + load.get("num_waiting_reqs", 0) for load in loads)
        return frozenset((await self.list_models()).adapters) if requests else frozenset()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
