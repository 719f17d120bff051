"""Whom the middleware of ``examples/vllm-guard.yaml`` lets change adapters."""

import asyncio
import runpy

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.agent.guard import write_guard

AGENT, STRANGER = "127.0.0.1", "10.1.2.3"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Starlette:
    """Answer 200 to whatever the guard lets pass."""
    directory = write_guard(tmp_path_factory.mktemp("guard") / "mount")
    guard = runpy.run_path(str(directory / "finetune_guard.py"))["Guard"]

    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("passed")

    methods = ["GET", "POST", "DELETE"]
    return Starlette(routes=[Route("/{path:path}", answer, methods=methods)], middleware=[Middleware(guard)])


@pytest.mark.parametrize(
    ("client", "path", "headers", "status"),
    [
        (STRANGER, "/v1/load_lora_adapter", {}, 403),
        (STRANGER, "/v1/unload_lora_adapter", {}, 403),
        (STRANGER, "/adapters", {}, 403),
        (STRANGER, "/adapters/", {}, 403),
        (STRANGER, "//adapters", {}, 403),
        (STRANGER, "/%61dapters", {}, 403),
        (STRANGER, "/adapters/support-bot", {}, 403),
        (STRANGER, "/behind/a/root/path/adapters", {}, 403),
        (STRANGER, "/invocations", {}, 403),
        (STRANGER, "/sleep", {}, 403),
        (STRANGER, "/adapters", {"x-forwarded-for": AGENT}, 403),
        (AGENT, "/adapters", {"X-Forwarded-For": STRANGER}, 403),
        (AGENT, "/adapters", {"Forwarded": f"for={STRANGER}"}, 403),
        (AGENT, "/v1/load_lora_adapter", {}, 200),
        ("::1", "/v1/unload_lora_adapter", {}, 200),
        (STRANGER, "/v1/completions", {}, 200),
        (STRANGER, "/v1/chat/completions", {"x-forwarded-for": "10.9.9.9"}, 200),
        (STRANGER, "/v1/models", {}, 200),
        (STRANGER, "/metrics", {}, 200),
        (STRANGER, "/health", {}, 200),
    ],
)
def test_only_the_agent_changes_adapters(
    engine: Starlette, client: str, path: str, headers: dict[str, str], status: int
) -> None:
    transport = httpx.ASGITransport(engine, client=(client, 1234))

    async def ask() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://pod") as session:
            return (await session.post(f"http://pod{path}", headers=headers)).status_code

    assert asyncio.run(ask()) == status
