"""Limit the connections to the HTTP server, so that slow or greedy clients cannot block the others.

aiohttp waits without end for the rest of a request. Here a connection has one request and a time limit, and a peer has
a limited number of connections.
"""

import asyncio
from collections import Counter

from aiohttp import web

SECONDS = 30.0
"""How long a connection may exist, with its one request and the answer."""
CONNECTIONS, PER_PEER = 512, 128
"""The most connections: of all peers, below the usual limit of 1,024 descriptors, and of one address."""


class Connections:
    """The open connections, the oldest first."""

    def __init__(self, seconds: float = SECONDS, total: int = CONNECTIONS, per_peer: int = PER_PEER) -> None:
        """Set the limits: seconds of a connection, and connections of all peers and of one."""
        self.seconds, self._total, self._per_peer = seconds, total, per_peer
        self._peers: dict[asyncio.Transport, str] = {}
        self._numbers: Counter[str] = Counter()

    def add(self, transport: asyncio.Transport) -> None:
        """Add a connection. At a limit, the oldest connection of its peer, or of all, is aborted."""
        peer = str((transport.get_extra_info("peername") or ("",))[0])
        if self._numbers[peer] >= self._per_peer:
            self._abort(
                next(connection for connection, peer_of_connection in self._peers.items() if peer_of_connection == peer)
            )
        elif len(self._peers) >= self._total:
            self._abort(next(iter(self._peers)))
        self._peers[transport] = peer
        self._numbers[peer] += 1

    def remove(self, transport: asyncio.Transport) -> None:
        """Remove a connection that has ended, unless it was removed before."""
        if (peer := self._peers.pop(transport, None)) is not None:
            self._numbers[peer] -= 1
            if not self._numbers[peer]:
                del self._numbers[peer]

    def _abort(self, transport: asyncio.Transport) -> None:
        self.remove(transport)
        transport.abort()


class LimitedProtocol(asyncio.Protocol):
    """Pass a connection on to aiohttp's protocol, and end it when its time is over."""

    def __init__(self, protocol: asyncio.Protocol, connections: Connections) -> None:
        """Wrap aiohttp's protocol of one connection."""
        self._protocol, self._connections = protocol, connections
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection and start its time."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- a TCP server has no other
        self._transport = transport
        self._connections.add(transport)
        self._timer = asyncio.get_running_loop().call_later(self._connections.seconds, transport.abort)
        self._protocol.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        if self._timer:
            self._timer.cancel()
        if self._transport:
            self._connections.remove(self._transport)
        self._protocol.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Pass on the received bytes."""
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on that the peer sends no more."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Pass on that the peer reads slowly."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the peer reads again."""
        self._protocol.resume_writing()


class LimitedSite(web.BaseSite):
    """A site of aiohttp whose connections are limited."""

    def __init__(self, runner: web.AppRunner, host: str, port: int, connections: Connections) -> None:
        """Set where to listen."""
        super().__init__(runner)
        self._host, self._port, self._connections = host, port, connections

    @property
    def name(self) -> str:
        """Return the address."""
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen."""
        await super().start()
        make_protocol = self._runner.server
        assert make_protocol is not None  # noqa: S101 -- a runner that is set up has one
        self._server = await asyncio.get_running_loop().create_server(
            lambda: LimitedProtocol(make_protocol(), self._connections), self._host, self._port
        )


async def close_after_answer(_: web.Request, response: web.StreamResponse) -> None:
    """Close the connection after its first answer (a signal handler of aiohttp)."""
    response.force_close()
    response.headers["Connection"] = "close"
