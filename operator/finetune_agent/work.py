"""Carrying out one decided action for one adapter, and remembering how it went. What failed is decided upon anew at the next tick."""

import asyncio
import logging
import time

from finetune_agent.agent import Agent
from finetune_agent.compatibility import IncompatibleError
from finetune_agent.decide import Decision, Do
from finetune_agent.engines.base import Engine, EngineError
from finetune_agent.fetch import fetch
from finetune_agent.paths import version_directory
from finetune_agent.proof import Question, Verdict, judge_adapter, judge_base, questions
from finetune_agent.state import record_fault, remember_good
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_artifacts.errors import ArtifactError

log = logging.getLogger(__name__)

PERMANENT_FAULTS = frozenset({Reason.DIGEST_MISMATCH, Reason.ADAPTER_UNSUPPORTED})
"""What no second download can mend: the version is pinned by its digest."""


class NotProvenError(Exception):
    """The engine's answers are not those of the adapter, or not those of its base."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


async def carry_out(agent: Agent, adapter: DesiredAdapter | None, served_name: str, decision: Decision) -> None:
    """Do it. Never raises: a failure is remembered against the version, and so delays or refuses this one only."""
    digest = decision.version.digest if decision.version else ""
    key = (served_name, digest)
    memory = agent.memory
    what = f"{served_name} ({digest[7:19]}): {decision.do}" + (f" {decision.name}" if decision.name else "")
    memory.started.setdefault(key, time.monotonic())
    try:
        log.info("%s", what)
        await _do(agent, adapter, served_name, decision)
        return
    except ArtifactError as error:
        reason, message, permanent, strike = error.reason, error.message, error.reason in PERMANENT_FAULTS, False
    except (IncompatibleError, NotProvenError) as error:
        reason, message, permanent, strike = error.reason, error.message, True, False
    except EngineError as error:
        reason, message, permanent, strike = error.reason, error.message, error.permanent, error.unexplained
    except OSError as error:
        reason, message, permanent, strike = (
            Reason.DOWNLOAD_FAILED,
            f"the adapter cannot be written to disk: {error.strerror}",
            False,
            False,
        )
    except Exception as error:  # a fault of ours must neither end the agent nor block the other adapters
        log.exception("%s: unexpected", what)
        reason, message, permanent, strike = (
            Reason.ENGINE_REFUSED,
            f"unexpected {type(error).__name__}, see the log of the agent",
            False,
            True,
        )
    log.warning("%s failed: %s: %s", what, reason, message)
    record_fault(memory, key, reason, message, permanent=permanent, strike=strike, now=time.monotonic())


async def _do(agent: Agent, adapter: DesiredAdapter | None, served_name: str, decision: Decision) -> None:
    engine, version, name, path = agent.engine, decision.version, decision.name or "", decision.path or ""
    if decision.do is Do.DOWNLOAD:
        assert adapter is not None and version is not None  # noqa: S101 -- decide() downloads what is wanted only
        await _download(agent, adapter, version)
        return
    assert engine is not None  # noqa: S101 -- decide() acts on an engine that it has seen
    if decision.do is Do.UNLOAD:
        await engine.unload(name)
        agent.memory.draining.pop(served_name, None)
    elif decision.do is Do.LOAD_CANDIDATE:
        await engine.load(name, path)
    else:
        assert version is not None  # noqa: S101 -- decide() proves versions
        tolerance = adapter.tolerance if adapter else DesiredAdapter.model_fields["tolerance"].default
        if decision.do is Do.PROVE_BASE:
            await _prove_base(agent, engine, served_name, version, name, tolerance)
        elif decision.do is Do.PROVE:
            await _prove(agent, engine, served_name, version, name, path, tolerance)
        elif decision.do is Do.SWAP:
            await _swap(agent, engine, version, name, path, tolerance)


async def _download(agent: Agent, adapter: DesiredAdapter, version: DesiredVersion) -> None:
    directory = version_directory(agent.settings.adapters_directory, adapter.served_name, version.digest)
    maximum = agent.desired.max_lora_rank if agent.desired else None
    loop = asyncio.get_running_loop()
    golden = await loop.run_in_executor(agent.downloads, fetch, agent.settings, adapter, version, directory, maximum)
    agent.memory.checked[adapter.served_name, version.digest] = golden
    agent.memory.failed.pop((adapter.served_name, version.digest), None)


async def _prove_base(
    agent: Agent, engine: Engine, served_name: str, version: DesiredVersion, base: str, tolerance: float
) -> None:
    asked = questions(agent.memory.checked[served_name, version.digest])
    measured = await _ask(engine, base, asked)
    _accept(judge_base(measured, asked, tolerance), base)
    agent.memory.bases_proven[served_name, version.digest] = measured


async def _prove(
    agent: Agent, engine: Engine, served_name: str, version: DesiredVersion, name: str, path: str, tolerance: float
) -> None:
    memory, key = agent.memory, (served_name, version.digest)
    identity, asked, base = memory.identity, questions(memory.checked[key]), memory.bases_proven.get(key)
    if base is None:  # the engine ended in between, and all begins anew
        return
    measured = await _ask(engine, name, asked)
    _accept(judge_adapter(measured, base, asked, tolerance), name)
    if memory.identity != identity:
        return
    memory.proven.add((name, path))
    if name == served_name:
        remember_good(memory, served_name, version)
        memory.failed.pop(key, None)
        if key in memory.started:  # else it is not wanted any more
            memory.load_seconds.setdefault(key, time.monotonic() - memory.started[key])


async def _swap(agent: Agent, engine: Engine, version: DesiredVersion, name: str, path: str, tolerance: float) -> None:
    """The served name moves. Unload and load, never in place: a request in flight keeps the weights that it began with."""
    memory = agent.memory
    if name not in memory.draining:
        memory.swapping.add(name)
    try:
        if name in (await engine.models()).adapters:
            await engine.unload(name)
        await engine.load(name, path)
        await _prove(agent, engine, name, version, name, path, tolerance)
        memory.draining.pop(name, None)
    finally:
        memory.swapping.discard(name)


async def _ask(engine: Engine, model: str, asked: list[Question]) -> list[float]:
    return await engine.logprobs(model, [(question.prompt, question.token) for question in asked])


def _accept(verdict: Verdict, name: str) -> None:
    if verdict.reason is not None:
        raise NotProvenError(verdict.reason, verdict.message)
    log.info("%s is proven: %s", name, verdict.message)
