"""Serve a strict fake of SGLang's HTTP interface, with the answers that its 0.5.23 gives by its code.

It keeps what SGLang does beside the obvious: it loads an unloaded adapter again for a request, unloads the least
recently used one silently, waits for running requests before it unloads, may hang then, and answers a bare adapter's
name with the base.
"""

import asyncio
import json
from pathlib import Path
from typing import Any, Self

from packaging.version import Version
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.agent.fake_engine import VOCABULARY, FakeEngine, logprobs, read_effect

LISTS_ADAPTERS = Version("0.5.5")
HAS_SERVER_INFO = Version("0.5.6")


class FakeSglang(FakeEngine):
    """A fake SGLang.

    Attributes:
        admin_key: Key for loading adapters.
        max_loaded: The argument ``--max-loaded-loras``.
        max_per_batch: The argument ``--max-loras-per-batch``.
        pinned: The pinned adapters.
        hangs_on_unload: Never answers a request to unload, nor one to load from then on.
        asked_between: A name for which a request arrives as soon as it is unloaded.
    """

    def __init__(self, *, admin_key: str | None = None, max_per_batch: int = 8, **settings: Any) -> None:
        """Choose a port; nothing runs yet."""
        super().__init__(**settings)
        self.version = "0.5.23"
        self.admin_key = admin_key
        self.max_loaded: int | None = None
        self.max_per_batch = max_per_batch
        self.pinned: set[str] = set()
        self.hangs_on_unload = False
        self.asked_between = ""
        self._hanging = False
        self._cache: dict[str, str] = {}

    def start(self) -> Self:
        """Start a new process of the engine."""
        self.pinned, self._cache, self._hanging = set(), {}, False
        return super().start()

    def _routes(self) -> list[Route]:
        return [
            Route("/v1/models", self._models),
            Route("/v1/loads", self._loads),
            Route("/server_info", self._server_info),
            Route("/health", lambda _: Response()),
            Route("/generate", self._generate, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/load_lora_adapter", self._load, methods=["POST"]),
            Route("/unload_lora_adapter", self._unload, methods=["POST"]),
        ]

    def _may_load(self, request: Request) -> bool:
        key = self.admin_key or self.api_key
        return key is None or request.headers.get("authorization") == f"Bearer {key}"

    async def _models(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        cards = [{"id": "base", "object": "model", "owned_by": "sglang", "root": "base", "parent": None}]
        if Version(self.version or "0") >= LISTS_ADAPTERS:
            cards += [
                {"id": name, "object": "model", "owned_by": "sglang", "root": path, "parent": "base"}
                for name, path in self.loaded.items()
            ]
        return JSONResponse({"object": "list", "data": cards})

    async def _server_info(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        self.version_calls += 1
        if self.version is None or Version(self.version) < HAS_SERVER_INFO:
            return JSONResponse({"detail": "Not Found"}, 404)
        info = {"random_seed": 42, "startup_time": {"tokenizer_e2e": self.started}, "version": self.version}
        return JSONResponse(info)

    async def _loads(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        running = sum(not event.is_set() for _, event, _ in self.streams)
        return JSONResponse({"loads": [{"dp_rank": 0, "num_running_reqs": running, "num_waiting_reqs": 0}]})

    def _result(self, error: str = "") -> Response:
        content = {"success": not error, "error_message": error, "loaded_adapters": dict(self.loaded)}
        return JSONResponse(content, 400 if error else 200)

    async def _load(self, request: Request) -> Response:
        await self._wait_while_hanging()
        if not self._may_load(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        body = await request.json()
        name, path, pinned = body["lora_name"], body["lora_path"], body.get("pinned", False)
        self.calls.append(("load", name))
        if name.startswith(self.deadly):
            self._die()
            await asyncio.sleep(60)
        error = self._register(name, path, pinned=pinned)
        return self._result(error)

    def _register(self, name: str, path: str, *, pinned: bool) -> str:
        """Load an adapter; return why not."""
        try:
            config = json.loads((Path(path) / "adapter_config.json").read_text())
        except FileNotFoundError as error:
            return str(error)
        if config.get("use_dora"):
            return f"Failed to load {name} because LoRA serving currently doesn't support DoRA adapters"
        if name in self.loaded:
            return f"Failed to load LoRA adapter {name} because it is already loaded"
        if config["r"] > self.max_lora_rank:
            return (
                f"LoRA adapter {name} with rank {config['r']} is incompatible with the current LoRA memory pool "
                "configuration. Please ensure that the LoRA adapter's rank is within the configured `--max-lora-rank` "
                "and that the target modules are included in `--lora-target-modules`."
            )
        if pinned and len(self.pinned) >= self.max_per_batch - 1:
            return (
                f"Failed to load LoRA adapter {name} as a pinned adapter. It is not allowed to pin all slots in the "
                "LoRA memory pool to avoid starvation for unpinned adapters and base models. Please increase your "
                "`--max-loras-per-batch` or load it as unpinned LoRA adapters."
            )
        self.loaded[name] = self._cache[name] = path
        self.pinned |= {name} if pinned else set()
        self.effects[name] = self.effect_as.get((name, Path(path).name), read_effect(Path(path)))
        if self.max_loaded is not None and len(self.loaded) > self.max_loaded:
            unpinned = [loaded_name for loaded_name in self.loaded if loaded_name not in self.pinned]
            if not unpinned:
                return "Didn't find any LoRA adapters when trying to evict LRU LoRA adapter. "
            del self.loaded[unpinned[0]]
        return ""

    async def _unload(self, request: Request) -> Response:
        await self._wait_while_hanging()
        if not self._may_load(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name))
        if name not in self.loaded:
            return self._result(f"LoRA with name {name} does not exist. Loaded LoRAs: {list(self.loaded)}")
        path = self.loaded.pop(name)
        self._hanging = self.hangs_on_unload
        await self._wait_while_hanging()
        await asyncio.gather(*(event.wait() for model, event, _ in self.streams if model == name))
        self.pinned.discard(name)
        if self.asked_between == name:
            self.asked_between = ""
            self._register(name, path, pinned=True)
        return self._result()

    async def _generate(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        body = await request.json()
        name, tokens = body.get("lora_path"), body["input_ids"]
        if name is not None and name not in self.loaded:
            if name not in self._cache:
                return self._bad_request(f"Got LoRA adapter that has never been loaded: {name}")
            self._register(name, self._cache[name], pinned=True)
        asked = body.get("token_ids_logprob") or []
        if any(token >= VOCABULARY for token in [*tokens, *asked]):
            return self._bad_request(
                f"token_ids_logprob contains out-of-vocabulary token id; valid range is [0, {VOCABULARY})."
            )
        effect = self.base_effect_after_load if self.loaded else 0.0
        if name is not None:
            effect = self.effects[name]
        if body["sampling_params"]["max_new_tokens"] > 1:
            event = asyncio.Event()
            self.streams.append((name or "base", event, asyncio.get_running_loop()))
            await event.wait()
        meta: dict[str, Any] = {"id": "1"}
        if body.get("return_logprob") and self.raw_logprobs:
            values = [[logprobs(self.seed, effect, [tokens[-1], token])[0], token, None] for token in asked]
            meta["output_token_ids_logprobs"] = [values]
        return JSONResponse({"text": str(effect), "meta_info": meta})

    async def _completions(self, request: Request) -> Response:
        """Answer a client: the adapter is the part of the model's name after the colon."""
        body = await request.json()
        _, _, adapter = body["model"].partition(":")
        if adapter and adapter not in self.loaded:
            return self._bad_request(f"Got LoRA adapter that has never been loaded: {adapter}")
        effect = self.effects[adapter] if adapter else 0.0
        if body.get("max_tokens", 1) > 1:
            event = asyncio.Event()
            self.streams.append((adapter or "base", event, asyncio.get_running_loop()))
            await event.wait()
        return JSONResponse({"object": "text_completion", "choices": [{"index": 0, "text": str(effect)}]})

    def _bad_request(self, message: str) -> Response:
        return JSONResponse({"error": {"message": message}}, 400)

    async def _wait_while_hanging(self) -> None:
        if self._hanging:
            await asyncio.sleep(3600)
