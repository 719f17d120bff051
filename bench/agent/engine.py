"""Run a double of vLLM with one answer for the base and one for every adapter.

It has only the routes that an idle agent asks.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tools.testing.waiting import free_port, wait_for

BASE_LOGPROB, ADAPTER_LOGPROB = -2.0, -1.0


@contextmanager
def running_engine() -> Iterator[int]:
    """Run the double for the length of a ``with`` block, and yield its port."""
    port = free_port()
    config = uvicorn.Config(build_application(), host="127.0.0.1", port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    wait_for(lambda: server.started, 20, "the double of the engine")
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)


def build_application() -> Starlette:
    """Build the double of one engine, which has loaded nothing yet."""
    loaded: dict[str, str] = {}
    started = time.time()

    async def models(_: Request) -> Response:
        cards = [{"id": name, "root": path, "parent": "base"} for name, path in loaded.items()]
        return JSONResponse({"data": [{"id": "base", "root": "/base", "parent": None}, *cards]})

    async def load(request: Request) -> Response:
        body = await request.json()
        loaded[body["lora_name"]] = body["lora_path"]
        return PlainTextResponse("Success")

    async def unload(request: Request) -> Response:
        loaded.pop((await request.json())["lora_name"], None)
        return PlainTextResponse("Success")

    async def complete(request: Request) -> Response:
        value = BASE_LOGPROB if (await request.json())["model"] == "base" else ADAPTER_LOGPROB
        return JSONResponse({"choices": [{"logprobs": {"token_logprobs": [value]}}]})

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(f"process_start_time_seconds {started}\n")

    async def version(_: Request) -> Response:
        return JSONResponse({"version": "0.33.0"})

    posts = {"load_lora_adapter": load, "unload_lora_adapter": unload, "completions": complete}
    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/metrics", metrics),
            Route("/version", version),
            *(Route(f"/v1/{path}", handler, methods=["POST"]) for path, handler in posts.items()),
        ]
    )
