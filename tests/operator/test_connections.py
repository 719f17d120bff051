"""Connections to the report endpoint end if they are idle, half-sent or too many, and others are served."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import ClientSession, web

from finetune_operator.server.application import serve
from finetune_operator.server.connections import Connections, close_after_answer


def serving(connections: Connections, visit: Callable[[int], Awaitable[None]]) -> None:
    """Serve an application of one path on loopback while ``visit`` is called with its port."""

    async def run() -> None:
        async def healthz(request: web.Request) -> web.Response:
            await request.read()
            return web.Response(text="ok")

        app = web.Application()
        app.on_response_prepare.append(close_after_answer)
        app.router.add_route("*", "/healthz", healthz)
        runner, port = await serve(app, "127.0.0.1", 0, connections)
        try:
            await asyncio.wait_for(visit(port), 30)
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def is_served(port: int) -> bool:
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as answer:
        return answer.status == 200


async def ends(reader: asyncio.StreamReader) -> bool:
    """Tell whether the server ends a connection to which it answers nothing."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


def test_idle_and_half_sent_connections_end_after_their_time() -> None:
    async def visit(port: int) -> None:
        for sent in (b"", b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{", b"GET /heal"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert await ends(reader), sent
            writer.close()

    serving(Connections(seconds=0.3), visit)


def test_the_oldest_connection_of_a_peer_makes_room_for_its_next_one() -> None:
    async def visit(port: int) -> None:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        assert await is_served(port)
        assert await ends(connections[0][0])
        for _, writer in connections:
            writer.close()

    serving(Connections(seconds=60, per_peer=5), visit)


def test_the_oldest_of_all_makes_room_where_there_are_too_many_together() -> None:
    async def visit(port: int) -> None:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        assert await is_served(port)
        assert await ends(connections[0][0])
        for _, writer in connections:
            writer.close()

    serving(Connections(seconds=60, total=4), visit)


def test_a_connection_has_one_request() -> None:
    async def visit(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await reader.read()
        assert b"200 OK" in answer
        assert b"Connection: close" in answer
        writer.close()

    serving(Connections(seconds=60), visit)


def test_a_connection_that_ended_is_not_counted() -> None:
    async def visit(port: int) -> None:
        first, second = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):
            assert await is_served(port)
        first.feed_eof()
        assert not second.is_closing()
        second.close()

    serving(Connections(seconds=60, per_peer=2), visit)
