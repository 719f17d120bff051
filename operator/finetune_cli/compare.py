"""Run ``finetune compare``: let base and adapter answer the same prompts, side by side."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from finetune_api.adapterdeployment import Target
from finetune_api.limits import quote
from finetune_api.version_paths import version_name
from finetune_cli.answers import print_answers
from finetune_cli.cluster import Cluster, Object
from finetune_cli.errors import CliError
from finetune_engines import ENGINES
from finetune_engines.base import Engine

ANSWER_SECONDS = 120.0
Call = Callable[[str, Object | None], Object]
"""Sends a request to a path of the engine: POST with a body, GET without."""


@dataclass(frozen=True)
class Request:
    """The options of the command; ``base`` None: the adapter's parent."""

    prompts: list[str]
    base: str | None
    max_tokens: int
    chat: bool


def compare_pod(cluster: Cluster, name: str, request: Request, output: str) -> None:
    """Ask a pod that serves the AdapterDeployment, through the API server. Raises CliError if there is none."""
    item = cluster.find_one("AdapterDeployment", name)
    if _read_engine(item["spec"]["target"]).serves_merged:
        raise CliError(f"{name} serves a merged model, so its pods have no base that could answer beside it")
    active = [pod["name"] for pod in item.get("status", {}).get("podStatus") or [] if pod["state"] == "Active"]
    if not active:
        raise CliError(f"no pod serves {item['spec']['servedName']!r} yet; see: finetune status {name}")
    port = _read_port(item["spec"]["target"])
    root = f"/api/v1/namespaces/{cluster.namespace}/pods/{active[0]}:{port}/proxy"
    _compare(
        lambda path, body: cluster.call("POST" if body else "GET", root + path, None, body),
        _find_model(item),
        request,
        output,
    )


def _find_model(item: Object) -> str:
    """Find the name under which the engine has the adapter: with canary.traffic that of the version that is served."""
    name, active = item["spec"]["servedName"], item.get("status", {}).get("active")
    by_version = item["spec"].get("strategy", {}).get("canary", {}).get("traffic") is not None
    return version_name(name, active["digest"]) if by_version and active is not None else str(name)


def _read_port(target: Object) -> int:
    """Return the engine's port, also of an object that was written without its defaults."""
    return int(target.get("port", _read_engine(target).port))


def _read_engine(target: Object) -> Engine:
    return ENGINES[target.get("engine", Target.model_fields["engine"].default)]


def compare_url(url: str, model: str, request: Request, output: str) -> None:
    """Ask the service at an address, with ``$OPENAI_API_KEY`` if it is set. Raises CliError."""
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=ANSWER_SECONDS) as client:
        _compare(lambda path, body: _http(client, path, body), model, request, output)


def _http(client: httpx.Client, path: str, body: Object | None) -> Object:
    try:
        answer = client.post(path, json=body) if body else client.get(path)
    except httpx.HTTPError as error:
        raise CliError(f"cannot reach {client.base_url}: {error}") from error
    if answer.is_error:
        raise CliError(f"{client.base_url.join(path)} answered {answer.status_code}: {quote(answer.text)}")
    content: Object = answer.json()
    return content


def _compare(call: Call, adapter: str, request: Request, output: str) -> None:
    models = call("/v1/models", None)
    base = request.base or base_of(models, adapter)
    model = _client_model(models, base, adapter)
    rows = [
        {
            "prompt": prompt,
            "base": _answer(call, base, prompt, request),
            "adapter": _answer(call, model, prompt, request),
        }
        for prompt in request.prompts
    ]
    if output == "json":
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    print_answers(rows, base, adapter)


def base_of(models: Object, adapter: str) -> str:
    """Return the base's name from the engine's list of models. Raises CliError if the adapter is not in it."""
    cards: list[dict[str, Any]] = models.get("data", [])
    for card in cards:
        if card["id"] == adapter and card.get("parent"):
            return str(card["parent"])
    names = ", ".join(card["id"] for card in cards)
    raise CliError(f"{adapter!r} is not among the adapters of this service; it has: {names or 'none'}. Or give --base")


def _client_model(models: Object, base: str, adapter: str) -> str:
    """Return the model that clients ask for. It depends on the engine that owns the adapter in the list."""
    owner = next((card.get("owned_by") for card in models.get("data", []) if card["id"] == adapter), None)
    engine = next((engine for engine in ENGINES.values() if engine.name == owner), None)
    return engine.client_model(base, adapter) if engine else adapter


def _answer(call: Call, model: str, prompt: str, request: Request) -> str:
    body: Object = {"model": model, "max_tokens": request.max_tokens, "temperature": 0}
    if request.chat:
        body["messages"] = [{"role": "user", "content": prompt}]
        return str(call("/v1/chat/completions", body)["choices"][0]["message"]["content"]).strip()
    body["prompt"] = prompt
    return str(call("/v1/completions", body)["choices"][0]["text"]).strip()
