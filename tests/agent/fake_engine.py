"""Serve a strict fake of vLLM's HTTP interface, for races and failures that no real engine produces on demand.

Its answers have the shapes recorded from vLLM 0.32. Its "model" is arithmetic: the log-probability of a token depends
on the base's seed and, for an adapter, on the number in its weights' metadata. It keeps what real engines do wrong:
a load in place changes running requests, the prefix cache is keyed by name and path (before 0.31 by name), a load
disturbs requests of other adapters (before 0.26), an adapter whose modules match nothing answers as the base, and
/health knows nothing of adapters.
"""

import asyncio
import contextlib
import json
import struct
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import uvicorn
from packaging.version import Version
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from finetune_api.manifest import GoldenSample, GoldenSamples
from tools.testing.waiting import free_port, wait_for

PROMPTS = [[1, 5, 9, 2, 7, 3], [4, 4, 8, 1, 6]]
VOCABULARY = 50
BLOCK = 16
"""Tokens in a block of the prefix cache."""


def logprobs(seed: int, effect: float, tokens: list[int]) -> list[float]:
    """Return the log-probability of each token after the first.

    Args:
        seed: Seed of the base.
        effect: Strength of the adapter; 0 for the base alone.
        tokens: The tokens.
    """
    return [
        -1.0 - ((seed * 31 + left * 7 + right * 3) % 17) / 10 + effect * (0.2 + ((left + right) % 5) / 10)
        for left, right in pairwise(tokens)
    ]


def golden(seed: int, effect: float) -> GoldenSamples:
    """Return the golden samples that a trainer would have written for this base and this adapter."""
    return GoldenSamples(
        samples=[
            GoldenSample(
                token_ids=tokens,
                base_logprobs=logprobs(seed, 0, tokens),
                adapter_logprobs=logprobs(seed, effect, tokens),
            )
            for tokens in PROMPTS
        ]
    )


def write_adapter(
    directory: Path, effect: float, *, seed: int = 1, rank: int = 8, applied: float | None = None, **config: Any
) -> Path:
    """Write an adapter's directory.

    Args:
        directory: Where to write it.
        effect: Strength of the adapter in its golden samples.
        seed: Seed of its base.
        rank: Its rank.
        applied: Strength of the adapter in the engine. None: the same as in its golden samples.
        config: More fields of adapter_config.json.
    """
    directory.mkdir(parents=True)
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "bias": "none",
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    (directory / "golden.json").write_text(golden(seed, effect).model_dump_json(by_alias=True))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    size = rank * 4 * 4
    header = {
        "__metadata__": {"effect": str(effect if applied is None else applied)},
        f"{layer}.lora_A.weight": {"dtype": "F32", "shape": [rank, 4], "data_offsets": [0, size]},
        f"{layer}.lora_B.weight": {"dtype": "F32", "shape": [4, rank], "data_offsets": [size, 2 * size]},
    }
    text = json.dumps(header).encode()
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(2 * size))
    return directory


def read_effect(path: Path) -> float:
    """Return the strength that the adapter in a directory has in the engine."""
    content = (path / "adapter_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return float(json.loads(content[8 : 8 + length])["__metadata__"]["effect"])


class FakeEngine:
    """A fake engine. ``start`` and ``kill`` act as on its process: loaded adapters are lost."""

    def __init__(
        self, seed: int = 1, max_lora_rank: int = 16, api_key: str | None = None, flat_errors: bool = False
    ) -> None:
        """Choose a port; nothing runs yet."""
        self.port = free_port()
        self.seed, self.max_lora_rank, self.api_key, self.flat_errors = seed, max_lora_rank, api_key, flat_errors
        self.version: str | None = "0.32.0+cpu"
        self.lora_routes = True
        self.raw_logprobs = True
        self.lora_modules: dict[str, str] = {}
        """What its arguments load when it starts."""
        self.loaded: dict[str, str] = {}
        self.effects: dict[str, float] = {}
        self.calls: list[tuple[str, str]] = []
        self.streams: list[tuple[str, asyncio.Event, asyncio.AbstractEventLoop]] = []
        self.delays: dict[str, float] = {}
        self.deadly: tuple[str, ...] = ()
        self.fail_load: Callable[[str, str], Response | None] = lambda name, path: None
        self.effect_as: dict[tuple[str, str], float] = {}
        self.history: list[str] = []
        self.disturbed: list[str] = []
        self.base_effect_after_load = 0.0
        self.version_calls = 0
        self.asleep = False
        self.busy = False
        self.running = 0
        self.most_at_once = 0
        self._prefixes: dict[tuple[str, ...], float] = {}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> Self:
        """Start a new process of the engine."""
        self.loaded, self.effects, self.streams, self.history = {}, {}, [], []
        self._prefixes = {}
        self.asleep = False
        for name, path in self.lora_modules.items():
            self.loaded[name], self.effects[name] = path, read_effect(Path(path))
        self.started = time.time()
        application = Starlette(
            routes=self._routes(), exception_handlers={404: lambda *_: JSONResponse({"detail": "Not Found"}, 404)}
        )
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                host="127.0.0.1",
                port=self.port,
                log_config=None,
                lifespan="off",
                timeout_graceful_shutdown=0,
            )
        )
        self._server = server

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await server.serve()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        wait_for(lambda: server.started, 10, "the fake engine")
        return self

    def _routes(self) -> list[Route]:
        routes = [
            Route("/v1/models", self._models),
            Route("/metrics", self._metrics),
            Route("/health", lambda _: Response()),
            Route("/version", self._version),
            Route("/v1/completions", self._completions, methods=["POST"]),
        ]
        if self.lora_routes:
            routes += [
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            ]
        return routes

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._thread is not None and self._thread.is_alive()

    def kill(self) -> None:
        """Kill the process, whatever it does at the moment."""
        if self._server is not None and self._thread is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended by itself
                self._loop.call_soon_threadsafe(self._die)
            self._thread.join(10)
            assert not self.alive
            self._server = None

    def _die(self) -> None:
        assert self._server is not None
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        self._server.should_exit = self._server.force_exit = True

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """End every request, and the engine."""
        self.finish()
        self.kill()

    def finish(self, count: int | None = None) -> None:
        """Let the oldest ``count`` running requests end, or all of them."""
        for _, event, running in self.streams[:count]:
            running.call_soon_threadsafe(event.set)
        self.streams = self.streams[count:] if count is not None else []

    def _error(self, message: str, kind: str, code: int) -> Response:
        error = {"message": message, "type": kind, "param": None, "code": code}
        return JSONResponse({"object": "error", **error} if self.flat_errors else {"error": error}, code)

    def _denied(self, request: Request) -> Response | None:
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        return None

    async def _models(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        cards = [{"id": "base", "object": "model", "owned_by": "vllm", "root": "/models/base", "parent": None}]
        cards += [
            {"id": name, "object": "model", "owned_by": "vllm", "root": path, "parent": "base"}
            for name, path in self.loaded.items()
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def _version(self, _: Request) -> Response:
        self.version_calls += 1
        return JSONResponse({"version": self.version} if self.version else {"detail": "Not Found"})

    def _is_before(self, release: str) -> bool:
        return self.version is None or Version(self.version) < Version(release)

    async def _load(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        body = await request.json()
        if "lora_name" not in body or "lora_path" not in body:
            return self._error("1 validation error", "Bad Request", 400)
        name, path = body["lora_name"], body["lora_path"]
        self.calls.append(("load_inplace" if body.get("load_inplace") else "load", name))
        if name == "base":
            return self._error("The lora adapter 'base' conflicts with a served base model.", "InvalidUserInput", 400)
        if name in self.loaded and not body.get("load_inplace"):
            return self._error(f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput", 400)
        if name.startswith(self.deadly):
            self._die()
            await asyncio.sleep(60)
        if answer := self.fail_load(name, path):
            return answer
        if not (Path(path) / "adapter_config.json").is_file():
            return self._error(f"Loading lora {name} failed: No adapter found for <path>", "NotFoundError", 404)
        config = json.loads((Path(path) / "adapter_config.json").read_text())
        if config["r"] > self.max_lora_rank:
            text = f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_lora_rank}."
            return self._error(f"Call to add_lora method failed: {text}", "InternalServerError", 500)
        if config.get("use_dora"):
            return self._error(
                "Call to add_lora method failed: vLLM does not yet support DoRA.", "InternalServerError", 500
            )
        if self._is_before("0.26"):
            self.disturbed += [model for model, event, _ in self.streams if model != "base" and not event.is_set()]
        self.loaded[name] = path
        self.effects[name] = self.effect_as.get((name, Path(path).name), read_effect(Path(path)))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name))
        if name not in self.loaded:
            return self._error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
        del self.loaded[name]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _completions(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        if self.busy or self.asleep:
            return self._error("The engine is overloaded", "ServiceUnavailable", 503)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            return await self._complete(await request.json())
        finally:
            self.running -= 1

    async def _complete(self, body: dict[str, Any]) -> Response:
        model, prompt = body["model"], body["prompt"]
        tokens = [byte % VOCABULARY for byte in prompt.encode()] if isinstance(prompt, str) else prompt
        if model != "base" and model not in self.loaded:
            return self._error(f"The model `{model}` does not exist. Valid aliases: base.", "NotFoundError", 404)
        if "prompt_logprobs" in body and self.streams:
            self._die()  # as vLLM 0.32 on CPUs, where another request is in the same batch
        if any(token >= VOCABULARY for token in tokens):
            return self._error(f"Token id {max(tokens)} is out of vocabulary", "BadRequestError", 400)
        await asyncio.sleep(self.delays.get(model, 0))
        base_effect = self.base_effect_after_load if self.loaded else 0.0
        effect = base_effect if model == "base" else self._computed_effect(model, tokens)
        if body.get("max_tokens", 1) > 1:
            event = asyncio.Event()
            self.streams.append((model, event, asyncio.get_running_loop()))
            self._note()
            await event.wait()
            self._note()
        choice: dict[str, object] = {"index": 0, "text": str(effect)}
        if body.get("allowed_token_ids"):
            (token,) = body["allowed_token_ids"]
            # of what the model computed, not of the one token that is allowed: vLLM's logprobs mode raw_logprobs
            value = logprobs(self.seed, effect, [tokens[-1], token])[0] if self.raw_logprobs else 0.0
            choice["logprobs"] = {"tokens": ["x"], "token_logprobs": [value]}
        return JSONResponse({"object": "text_completion", "model": model, "choices": [choice]})

    def _computed_effect(self, model: str, tokens: list[int]) -> float:
        """Return the adapter's effect, or that of whoever filled the prefix cache: only whole blocks are cached."""
        if len(tokens) < BLOCK:
            return self.effects[model]
        key = (model, str(tokens[:BLOCK])) + (() if self._is_before("0.31") else (self.loaded[model],))
        return self._prefixes.setdefault(key, self.effects[model])

    def _note(self) -> None:
        running = ",".join(sorted({name for name, event, _ in self.streams if not event.is_set() and name != "base"}))
        labels = f'max_lora="2",running_lora_adapters="{running}",waiting_lora_adapters=""'
        self.history.append(f"vllm:lora_requests_info{{{labels}}} {time.time()!r}")

    async def _metrics(self, _: Request) -> Response:
        lines = [
            "# TYPE vllm:lora_requests_info gauge",
            *reversed(self.history),
            f'vllm:engine_sleep_state{{engine="0",model_name="base",sleep_state="awake"}} {float(not self.asleep)}',
            f"process_start_time_seconds {self.started}",
        ]
        return PlainTextResponse("\n".join(lines) + "\n")
