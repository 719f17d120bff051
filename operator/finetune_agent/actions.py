"""Carry out one decided action for one adapter, and remember its result. The next tick decides about a failure."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from finetune_agent.agent import Agent
from finetune_agent.compatibility import IncompatibleError, check_adapter, check_version
from finetune_agent.decide import Action, Decision
from finetune_agent.disk import is_complete
from finetune_agent.fetch import fetch_version
from finetune_agent.proof import (
    Question,
    Verdict,
    choose_questions,
    judge_adapter,
    judge_base,
    judge_base_after_load,
    judge_merged,
)
from finetune_agent.reproof import judge_again
from finetune_agent.state import VersionKey, record_fault, remember_good_version
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.version_paths import short_digits, version_directory
from finetune_artifacts.errors import ArtifactError
from finetune_engines import ENGINES
from finetune_engines.base import Driver, EngineError, NoLogprobsError

log = logging.getLogger(__name__)

PERMANENT_REASONS = frozenset({Reason.DIGEST_MISMATCH, Reason.ADAPTER_UNSUPPORTED})
"""Reasons for which a repetition cannot help, because the digest pins the version."""
QUESTIONS_AT_ONCE = 8
"""Questions of a first proof at the same time: the engine computes them in one batch, and its clients do not wait."""


class NotProvenError(Exception):
    """The engine's answers are not those of the adapter, or not those of its base."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the reason and the message."""
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Proof:
    """What a proof needs. ``tolerance`` is the largest allowed mean difference, in nats per token."""

    agent: Agent
    driver: Driver
    served_name: str
    version: DesiredVersion
    tolerance: float

    @property
    def key(self) -> VersionKey:
        """Served name and digest of the version."""
        return self.served_name, self.version.digest

    @property
    def is_merged(self) -> bool:
        """Whether the engine serves a merged model, and so no base to compare with."""
        return _serves_merged(self.agent)

    @property
    def questions(self) -> list[Question]:
        """Questions about the version's golden samples."""
        return choose_questions(self.agent.memory.samples[self.key])


async def carry_out(agent: Agent, adapter: DesiredAdapter | None, served_name: str, decision: Decision) -> None:
    """Carry out a decision. Raises nothing: a failure is recorded for the version, and delays or refuses only it.

    Args:
        agent: The agent.
        adapter: The desired adapter; None if the adapter is to be removed.
        served_name: Its served name.
        decision: What to do.
    """
    digest = decision.version.digest if decision.version else ""
    key = (served_name, digest)
    memory = agent.memory
    name = f" {decision.name}" if decision.name else ""
    title = f"{served_name} ({short_digits(digest)}): {decision.action}{name}"
    memory.started_at.setdefault(key, time.monotonic())
    permanent = strike = False
    try:
        log.info("%s", title)
        async with _wait_turn(agent, decision):
            await _act(agent, adapter, served_name, decision)
        return
    except ArtifactError as error:
        reason, message, permanent = error.reason, error.message, error.reason in PERMANENT_REASONS
    except (IncompatibleError, NotProvenError) as error:
        reason, message, permanent = error.reason, error.message, True
        if key in memory.spoiled:
            message = memory.must_restart = f"{message}. It answered correctly before: restart the engine"
    except EngineError as error:
        reason, message, permanent, strike = error.reason, error.message, error.permanent, error.unexplained
        if reason is Reason.LORA_DISABLED and key in memory.spoiled:  # it loaded the version itself when it started
            reason, permanent = Reason.RESTART_REQUIRED, False
            message = "what the engine serves failed a later proof, and it loads no adapter at run time: restart it"
        if reason is Reason.RESTART_REQUIRED:
            memory.must_restart = message
    except OSError as error:
        reason, message = Reason.DOWNLOAD_FAILED, f"the adapter cannot be written to disk: {error.strerror or error}"
    except Exception as error:  # an error of ours must neither end the agent nor block the other adapters
        log.exception("%s: unexpected", title)
        message = f"unexpected {type(error).__name__}, see the log of the agent"
        reason, strike = Reason.ENGINE_REFUSED, True
    log.warning("%s failed: %s: %s", title, reason, message)
    record_fault(memory, key, reason, message, permanent=permanent, strike=strike, now=time.monotonic())


def _serves_merged(agent: Agent) -> bool:
    return agent.desired is not None and ENGINES[agent.desired.engine].serves_merged


def _wait_turn(agent: Agent, decision: Decision) -> contextlib.AbstractAsyncContextManager[object]:
    """Let one adapter at a time use an engine whose loads disturb requests. A proof sends requests too."""
    version = agent.memory.engine_version
    alone = version is not None and version.load_disturbs_requests and decision.action is not Action.DOWNLOAD
    return agent.turn if alone else contextlib.nullcontext()


async def _act(agent: Agent, adapter: DesiredAdapter | None, served_name: str, decision: Decision) -> None:
    driver, version, name, path = agent.driver, decision.version, decision.name or "", decision.path or ""
    if decision.action is Action.DOWNLOAD:
        assert adapter is not None and version is not None  # noqa: S101 -- only a desired version is downloaded
        await _download(agent, adapter, version)
        return
    assert driver is not None  # noqa: S101 -- the other actions follow an answer of the engine
    if decision.action is Action.UNLOAD:
        await driver.unload_adapter(name)
        agent.memory.draining.pop(served_name, None)
        return
    if decision.action is Action.LOAD_CANDIDATE:
        await _load_candidate(agent, driver, name, path)
        return
    assert version is not None  # noqa: S101 -- a proof is one of a version
    tolerance = adapter.tolerance if adapter else DesiredAdapter.model_fields["tolerance"].default
    proof = Proof(agent, driver, served_name, version, tolerance)
    if decision.action is Action.PROVE_BASE:
        await _prove_base(proof, name)
    elif decision.action is Action.PROVE:
        await _prove_adapter(proof, name, path)
    elif decision.action is Action.PROVE_AGAIN:
        await _prove_again(proof, name, path)
    elif decision.action is Action.SWAP:
        await _swap(proof, name, path)


async def _download(agent: Agent, adapter: DesiredAdapter, version: DesiredVersion) -> None:
    desired = agent.desired
    assert desired is not None  # noqa: S101 -- an adapter is part of a desired state
    engine = ENGINES[desired.engine]
    directory = version_directory(agent.settings.adapters_directory, adapter.served_name, version.digest)
    async with agent.downloads:
        if not await asyncio.to_thread(is_complete, directory, version.digest):
            await fetch_version(agent.settings, adapter, version, directory, merged=engine.serves_merged)
        samples = await asyncio.to_thread(check_adapter, directory, engine, desired.max_lora_rank)
    agent.memory.samples[adapter.served_name, version.digest] = samples
    agent.memory.failed.pop((adapter.served_name, version.digest), None)


async def _load_candidate(agent: Agent, driver: Driver, name: str, path: str) -> None:
    engine_version = agent.memory.engine_version
    if engine_version is not None and not _serves_merged(agent):
        await asyncio.to_thread(check_version, Path(path), engine_version)
    await _load(driver, name, path)


async def _load(driver: Driver, name: str, path: str) -> None:
    """Load an adapter, and check that the engine lists it: a status of 200 does not prove that. Raises EngineError."""
    await driver.load_adapter(name, path)
    listed = (await driver.list_models()).adapters.get(name)
    if listed != path:
        listing = f"lists {listed} under that name" if listed else "does not list it"
        text = f"the engine accepted {name} from {path}, and {listing}: look into its log"
        raise EngineError(Reason.ENGINE_REFUSED, text, permanent=False, unexplained=True)


async def _prove_base(proof: Proof, base: str) -> None:
    questions = proof.questions
    if proof.is_merged:  # the trainer's base stands for it
        proof.agent.memory.base_logprobs[proof.key] = [question.base for question in questions]
        return
    logprobs = await _ask(proof.driver, base, questions)
    _require_proof(judge_base(logprobs, questions, proof.tolerance), base)
    proof.agent.memory.base_logprobs[proof.key] = logprobs


async def _prove_adapter(proof: Proof, name: str, path: str) -> None:
    memory, key = proof.agent.memory, proof.key
    identity, base = memory.identity, memory.base_logprobs.get(key)
    if base is None:  # the engine has restarted, so everything is proven again
        return
    began = time.monotonic()
    verdict = await (_judge_merged(proof, name) if proof.is_merged else _judge_loaded(proof, name, base))
    if memory.identity != identity:
        return
    memory.remember_proof(name, path, verdict.message, began, time.monotonic())
    if name == proof.served_name:
        memory.spoiled.discard(key)
        remember_good_version(memory, proof.served_name, proof.version)
        memory.failed.pop(key, None)
        if key in memory.started_at:  # otherwise the version is no longer desired
            memory.load_seconds.setdefault(key, time.monotonic() - memory.started_at[key])


async def _judge_loaded(proof: Proof, name: str, base: list[float]) -> Verdict:
    """Judge a loaded adapter, and the base beside it. Raises NotProvenError."""
    questions = proof.questions
    verdict = judge_adapter(await _ask(proof.driver, name, questions), base, questions, proof.tolerance)
    _require_proof(verdict, name)
    base_name = next(iter((await proof.driver.list_models()).bases), "")
    after = await _ask(proof.driver, base_name, questions)
    _require_proof(judge_base_after_load(after, base, questions, proof.tolerance), base_name)
    return verdict


async def _judge_merged(proof: Proof, name: str) -> Verdict:
    """Judge a merged model. Where the engine tells no log-probabilities, its files count. Raises NotProvenError."""
    questions = proof.questions
    try:
        logprobs = await _ask(proof.driver, name, questions)
    except NoLogprobsError as error:
        text = f"the files are those of the digest, and the answers are not proven: the engine cannot tell, {error}"
        log.warning("%s: %s", name, text)
        return Verdict(None, text)
    verdict = judge_merged(logprobs, questions, proof.tolerance)
    _require_proof(verdict, name)
    return verdict


async def _prove_again(proof: Proof, name: str, path: str) -> None:
    """Prove the served version again, with one question at a time so that clients do not wait.

    Only two failures in a row count. If the engine refuses a question, the next proof follows as after a success.
    """
    memory, questions, identity = proof.agent.memory, proof.questions, proof.agent.memory.identity
    memory.proven_at[name, path] = began = time.monotonic()
    for _ in range(2):
        before = memory.base_logprobs.get(proof.key)
        if before is None:
            return
        try:
            verdict = await _ask_again(proof, name, before, questions)
        except EngineError as error:
            log.warning("%s was not proven again: %s", name, error.message)
            return
        if memory.identity != identity:
            return
        if verdict.reason is None:
            memory.remember_proof(name, path, verdict.message, began, time.monotonic())
            return
    log.error("%s failed a later proof, so it is loaded again: %s", name, verdict.message)
    memory.spoil(proof.key, path)
    proof.agent.report_due.set()


async def _ask_again(proof: Proof, name: str, before: list[float], questions: list[Question]) -> Verdict:
    logprobs = await _ask(proof.driver, name, questions, at_once=1)
    if proof.is_merged:
        return judge_merged(logprobs, questions, proof.tolerance)
    base_name = next(iter((await proof.driver.list_models()).bases), "")
    base = await _ask(proof.driver, base_name, questions, at_once=1)
    return judge_again(logprobs, base, before, questions, proof.tolerance)


async def _swap(proof: Proof, name: str, path: str) -> None:
    """Move the served name to another version: unload and load, never in place.

    Running requests keep the weights with which they began.
    """
    memory = proof.agent.memory
    served = (await proof.driver.list_models()).adapters.get(name)
    is_addition = memory.required is not None and name not in memory.required
    if name not in memory.draining and (is_addition or (name, served) in memory.proven):
        memory.swapping.add(name)
    try:
        if served is not None:
            await proof.driver.unload_adapter(name)
        await _load(proof.driver, name, path)
        await _prove_adapter(proof, name, path)
        memory.draining.pop(name, None)
    finally:
        memory.swapping.discard(name)


async def _ask(driver: Driver, model: str, questions: list[Question], at_once: int = QUESTIONS_AT_ONCE) -> list[float]:
    pairs = [(question.prompt, question.token) for question in questions]
    return await driver.logprobs(model, pairs, at_once=at_once)


def _require_proof(verdict: Verdict, name: str) -> None:
    if verdict.reason is not None:
        raise NotProvenError(verdict.reason, verdict.message)
    log.info("%s is proven: %s", name, verdict.message)
