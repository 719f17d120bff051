"""Report to the operator, at each change and every few seconds. Everything goes on if the operator does not answer."""

import asyncio
import contextlib
import logging

import httpx

from finetune_agent.agent import Agent
from finetune_agent.readiness import proven_digest
from finetune_agent.state import AdapterState, version_for_pod
from finetune_api.limits import quote
from finetune_api.messages import AGENT_PATH, AgentAdapter, AgentEngine, AgentReport, DesiredAdapter
from finetune_engines.base import EngineVersion

log = logging.getLogger(__name__)

MIN_PAUSE_SECONDS = 0.2
"""Pause between two reports, so that several changes become one report."""


def build_report(agent: Agent) -> AgentReport:
    """Build the report of the present state."""
    desired = agent.desired
    return AgentReport(
        engine_ready=agent.engine_state is not None,
        engine=_describe_engine(agent.memory.engine_version),
        ready=agent.judge_readiness(agent.engine_state).ready,
        adapters=[_describe_adapter(agent, adapter) for adapter in desired.adapters] if desired else [],
    )


def _describe_engine(version: EngineVersion | None) -> AgentEngine | None:
    if version is None:
        return None
    return AgentEngine(version=version.version, moves_by_restart=version.name_keeps_cache, limits=list(version.limits))


def _describe_adapter(agent: Agent, adapter: DesiredAdapter) -> AgentAdapter:
    memory, name, root = agent.memory, adapter.served_name, agent.settings.adapters_directory
    version = version_for_pod(adapter, agent.settings.pod) or adapter.version
    state = memory.adapter_states.get(name, AdapterState("Pending"))
    seconds = memory.load_seconds.get((name, version.digest))
    path = agent.engine_state.adapters.get(name, "") if agent.engine_state else ""
    return AgentAdapter(
        deployment=adapter.deployment,
        served_name=name,
        digest=version.digest,
        active_digest=proven_digest(memory, agent.engine_state, root, name) if agent.engine_state else None,
        state=state.state,
        reason=state.reason,
        message=state.message,
        proof=memory.proofs.get((name, path), ""),
        replaced=memory.replaced.get(name, 0),
        failed_reproofs=memory.failed_reproofs.get(name, 0),
        load_seconds=None if seconds is None else round(seconds, 3),
    )


async def send_reports(agent: Agent) -> None:
    """Send reports until cancelled. Does nothing without an address."""
    url = agent.settings.report_url
    if url is None:
        return
    warned = False
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(agent.report_due.wait(), agent.settings.report_seconds)
            agent.report_due.clear()
            problem = await send_report(client, url.rstrip("/") + AGENT_PATH, agent)
            if problem and not warned:
                log.warning("the operator did not accept the report; the agent keeps reporting: %s", problem)
            warned = problem is not None
            await asyncio.sleep(MIN_PAUSE_SECONDS)


async def send_report(client: httpx.AsyncClient, url: str, agent: Agent) -> str | None:
    """Send one report, and return what went wrong, if anything did.

    The token is read each time, because the kubelet renews it.
    """
    try:
        token = agent.settings.token_file.read_text(encoding="utf-8").strip()
        body = build_report(agent).to_json()
        answer = await client.post(url, json=body, headers={"Authorization": f"Bearer {token}"})
    except (OSError, httpx.HTTPError) as error:
        return f"{type(error).__name__}: {error}"
    return None if answer.is_success else f"{url} answered {answer.status_code}: {quote(answer.text)}"
