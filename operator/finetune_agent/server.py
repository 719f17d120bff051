"""Answer the kubelet's probes, Prometheus, and people.

``/readyz`` asks the engine each time, ``/livez`` tells whether the loop still runs, and ``/enginez`` whether the engine
must be restarted: a livenessProbe of the engine's container may ask it. ``/fetched`` tells whether every version is on
the disk and checked. ``/metrics`` is for Prometheus. ``/adapters`` is for a person with ``kubectl port-forward``, which
comes from the pod's own loopback; nobody else gets an answer.
"""

import json
import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from finetune_agent.agent import Agent
from finetune_agent.metrics import CONTENT_TYPE, render_metrics
from finetune_agent.readiness import find_unfetched
from finetune_agent.reporting import build_report
from finetune_engines.base import EngineError, EngineState

LOOPBACK = ("127.0.0.1", "::1")
STUCK_SECONDS = 120.0
"""Seconds without a tick after which the loop counts as stuck."""


def build_application(agent: Agent) -> Starlette:
    """Build the HTTP application of the probes, the metrics and the description for people."""

    async def readyz(_: Request) -> Response:
        engine_state = await _ask_engine(agent)
        _wake_on_change(agent, engine_state)
        readiness = agent.judge_readiness(engine_state)
        if not readiness.ready:
            _record_probe(agent)
        return PlainTextResponse(readiness.message + "\n", 200 if readiness.ready else 503)

    async def livez(_: Request) -> Response:
        alive = time.monotonic() - agent.heartbeat < STUCK_SECONDS
        return PlainTextResponse("ok\n" if alive else "the loop is stuck\n", 200 if alive else 503)

    async def enginez(_: Request) -> Response:
        problem = agent.memory.must_restart
        return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)

    async def fetched(_: Request) -> Response:
        missing = find_unfetched(agent.desired, agent.settings.pod, agent.memory)
        return PlainTextResponse(f"{missing or 'ok'}\n", 503 if missing else 200)

    async def metrics(_: Request) -> Response:
        return Response(render_metrics(agent), headers={"Content-Type": CONTENT_TYPE})

    async def adapters(request: Request) -> Response:
        if request.client is None or request.client.host not in LOOPBACK:
            return PlainTextResponse("only for kubectl port-forward\n", 403)
        text = json.dumps(describe(agent, await _ask_engine(agent)), indent=2, ensure_ascii=False)
        return Response(f"{text}\n", media_type="application/json")

    probes = {"readyz": readyz, "livez": livez, "enginez": enginez, "fetched": fetched}
    handlers = {**probes, "metrics": metrics, "adapters": adapters}
    return Starlette(routes=[Route(f"/{path}", handler) for path, handler in handlers.items()])


def describe(agent: Agent, engine_state: EngineState | None) -> dict[str, Any]:
    """Describe for a person what the pod serves, and why. No key and no Secret is in it."""
    readiness, report = agent.judge_readiness(engine_state), build_report(agent).to_json()
    return {
        "pod": agent.settings.pod,
        "ready": readiness.ready,
        "because": readiness.message,
        "engine": report.get("engine"),
        "loaded": dict(engine_state.adapters) if engine_state else None,
        "onDisk": [f"{name} {digest}" for name, digest in sorted(agent.memory.samples)],
        "adapters": report["adapters"],
    }


async def _ask_engine(agent: Agent) -> EngineState | None:
    """Return what the engine serves now; None if it does not answer."""
    if agent.driver is None or agent.engine_state is None:
        return None
    try:
        return await agent.driver.list_models()
    except EngineError:
        return None


def _wake_on_change(agent: Agent, engine_state: EngineState | None) -> None:
    """Wake the loop if the engine serves something else than at the last tick, or does not answer."""
    known = agent.engine_state
    if known is not None and (engine_state is None or engine_state.adapters != known.adapters):
        agent.wake.set()


def _record_probe(agent: Agent) -> None:
    """Record that a probe found the pod unready: from now on the endpoints follow."""
    for drain in agent.memory.draining.values():
        if drain.probed_at is None:
            drain.probed_at = time.monotonic()
