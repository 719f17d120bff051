"""Talk to one running engine that was started with a merged model, by the OpenAI interface.

What it serves is fixed when it starts: nothing is loaded and nothing is unloaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import httpx

from finetune_api.reasons import Reason
from finetune_engines.base import EngineError, EngineKeys, EngineState, NoLogprobsError
from finetune_engines.client import SLOW_SECONDS, TRY_LATER, EngineClient, Question, ask_each, read_error

TITLE = "an engine with the OpenAI interface"
COMPLETIONS = "/v1/completions"
MAX_NAMED = 5
"""Maximum number of models that a message names."""


class MergedDriver:
    """Driver of one engine."""

    def __init__(self, url: str, keys: EngineKeys, paths: Mapping[str, str]) -> None:
        """Prepare connections to ``url``. ``paths`` has the directory of the merged model, by its served name."""
        self._client = EngineClient(TITLE, url, keys.api, explain_refusal)
        self._paths = paths
        self._ids: dict[str, str] = {}
        self._listed = ""

    async def list_models(self) -> EngineState:
        """Read ``GET /v1/models``, and find there the models that the engine was to be started with."""
        cards = (await self._client.call_json("GET", "/v1/models")).get("data", [])
        self._listed = ", ".join(map(_describe, cards[:MAX_NAMED])) or "no model"
        found = {name: _find_card(cards, name, path) for name, path in self._paths.items()}
        self._ids = {name: str(card["id"]) for name, card in found.items() if card is not None}
        return EngineState(bases=(), adapters={name: self._paths[name] for name in self._ids})

    async def inspect(self) -> EngineState:
        """Return the models. The interface does not tell one process of the engine from another."""
        return await self.list_models()

    async def read_version(self) -> str | None:
        """Read ``GET /version``, which some engines have."""
        return await self._client.read_version("/version")

    async def load_adapter(self, name: str, path: str) -> None:
        """Refuse to load: raise EngineError with what the engine serves in place of the model at ``path``."""
        raise EngineError(
            Reason.ENGINE_REFUSED,
            f"the engine serves {self._listed}, and not the merged model in {path}: start it with that directory as "
            "its model, and let it name the model by spec.servedName (docs/engines.md)",
            permanent=False,
        )

    async def unload_adapter(self, name: str) -> None:
        """Refuse to unload: raise EngineError, because only another process of the engine serves something else."""
        text = f"the engine was started with {name}, and serves nothing else before it is restarted"
        raise EngineError(Reason.RESTART_REQUIRED, text, permanent=False)

    async def logprobs(self, model: str, questions: Sequence[Question], *, at_once: int) -> list[float]:
        """Ask for the log-probability of each question's token by echoing the prompt with the token at its end."""
        listed = self._ids.get(model, model)
        return await ask_each(lambda prompt, token: self._logprob(listed, prompt, token), questions, at_once)

    async def _logprob(self, model: str, prompt: Sequence[int], token: int) -> float:
        body = {
            "model": model,
            "prompt": [*prompt, token],
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        answer = await self._client.call_json("POST", COMPLETIONS, body, seconds=SLOW_SECONDS)
        try:
            value = answer["choices"][0]["logprobs"]["token_logprobs"][len(prompt)]
        except (KeyError, IndexError, TypeError):
            value = None
        if not isinstance(value, int | float):
            raise NoLogprobsError("it does not echo a prompt with its log-probabilities (echo, logprobs)")
        return float(value)

    async def busy_adapters(self) -> frozenset[str]:
        """Return no name: nothing waits for the end of requests here."""
        return frozenset()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def explain_refusal(path: str, answer: httpx.Response) -> EngineError:
    """Explain an error answer: an engine that refuses a question of a proof lacks what the proof needs."""
    _, message = read_error(answer)
    full = f"the engine answered {answer.status_code} to {path}: {message}"
    if answer.status_code in (401, 403):
        text = f"{full}. Name the Secret with its API_KEY in spec.target.apiKeySecretRef"
        return EngineError(Reason.ENGINE_REFUSED, text, permanent=False)
    if path == COMPLETIONS and answer.is_client_error and answer.status_code not in TRY_LATER:
        return NoLogprobsError(f"it refuses to echo a prompt with its log-probabilities ({message})")
    return EngineError(Reason.ENGINE_REFUSED, full, permanent=False, unexplained=answer.status_code not in TRY_LATER)


def _find_card(cards: Sequence[Mapping[str, Any]], name: str, path: str) -> Mapping[str, Any] | None:
    """Find the model that was loaded from ``path``: engines name it by the path, by its end, or by the served name.

    A name proves nothing where the card has a path of its own.
    """
    for card in cards:
        root = str(card.get("root") or "")
        named = (root,) if root.startswith("/") else (str(card.get("id")),)
        if path in named or PurePosixPath(path).name in named or (not root.startswith("/") and name in named):
            return card
    return None


def _describe(card: Mapping[str, Any]) -> str:
    root = str(card.get("root") or "")
    return f"{card.get('id')!r}" + (f" ({root})" if root.startswith("/") else "")
