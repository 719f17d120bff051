"""Connections to an engine that closes the idle ones."""

import asyncio

from finetune_engines.base import EngineKeys
from finetune_engines.client import KEEP_SECONDS
from finetune_engines.vllm.driver import VllmDriver

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Type: application/json\r\n\r\n{"data": []}'
SERVER_SECONDS = 5.0
"""After this time vLLM and SGLang close an idle connection (uvicorn's timeout_keep_alive)."""


def test_an_idle_connection_is_given_up_long_before_the_engine_closes_it() -> None:
    """A request that meets the engine's close looks like the end of the engine, and a roll-out would go back."""
    assert KEEP_SECONDS < SERVER_SECONDS / 2
    assert asyncio.run(count_connections(pause=0)) == 1
    assert asyncio.run(count_connections(pause=KEEP_SECONDS + 0.2)) == 2


async def count_connections(pause: float) -> int:
    """Return how many connections two requests used, with a pause of some seconds between them."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            writer.write(ANSWER)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        driver = VllmDriver(f"http://127.0.0.1:{port}", EngineKeys())
        await driver.list_models()
        await asyncio.sleep(pause)
        await driver.list_models()
        await driver.close()
    return connections
