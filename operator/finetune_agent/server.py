"""Answer the kubelet's probes.

``/readyz`` asks the engine each time, ``/livez`` tells whether the loop still runs, and ``/enginez`` whether the engine
must be restarted: a livenessProbe of the engine's container may ask it.
"""

import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from finetune_agent.agent import Agent
from finetune_engines.base import EngineError, EngineState

STUCK_SECONDS = 120.0
"""A loop without a tick for so long is stuck."""


def build_application(agent: Agent) -> Starlette:
    """Build the HTTP application of the probes."""

    async def readyz(_: Request) -> Response:
        readiness = agent.judge_readiness(await _ask_engine(agent))
        if not readiness.ready:
            _record_probe(agent)
        return PlainTextResponse(readiness.message + "\n", 200 if readiness.ready else 503)

    async def livez(_: Request) -> Response:
        alive = time.monotonic() - agent.heartbeat < STUCK_SECONDS
        return PlainTextResponse("ok\n" if alive else "the loop is stuck\n", 200 if alive else 503)

    async def enginez(_: Request) -> Response:
        problem = agent.memory.must_restart
        return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)

    return Starlette(routes=[Route("/readyz", readyz), Route("/livez", livez), Route("/enginez", enginez)])


async def _ask_engine(agent: Agent) -> EngineState | None:
    """Return what the engine serves now; None if it does not answer."""
    if agent.driver is None or agent.engine_state is None:
        return None
    try:
        return await agent.driver.list_models()
    except EngineError:
        return None


def _record_probe(agent: Agent) -> None:
    """Record that a probe found the pod unready: from now on the endpoints follow."""
    for drain in agent.memory.draining.values():
        if drain.probed_at is None:
            drain.probed_at = time.monotonic()
