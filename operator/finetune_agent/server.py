"""The probes: ``/readyz`` is the pod's gate and asks the engine each time, ``/livez`` says whether the loop still turns."""

import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from finetune_agent.agent import Agent
from finetune_agent.engines.base import EngineError, EngineView

STUCK_SECONDS = 120.0
"""A loop that has not turned for so long does not turn any more."""


def application(agent: Agent) -> Starlette:
    """The HTTP application."""

    async def readyz(_: Request) -> Response:
        found = agent.readiness(await _look(agent))
        if not found.ready:
            _tell(agent)
        return PlainTextResponse(found.message + "\n", 200 if found.ready else 503)

    async def livez(_: Request) -> Response:
        alive = time.monotonic() - agent.heartbeat < STUCK_SECONDS
        return PlainTextResponse("ok\n" if alive else "the loop does not turn\n", 200 if alive else 503)

    return Starlette(routes=[Route("/readyz", readyz), Route("/livez", livez)])


async def _look(agent: Agent) -> EngineView | None:
    """What the engine serves now; None if it does not answer."""
    if agent.engine is None or agent.view is None:
        return None
    try:
        return await agent.engine.models()
    except EngineError:
        return None


def _tell(agent: Agent) -> None:
    """A probe was told that the pod is unready: from now on the endpoints follow."""
    for drain in agent.memory.draining.values():
        if drain.told_at is None:
            drain.told_at = time.monotonic()
