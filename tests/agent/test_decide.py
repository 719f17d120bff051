"""The agent's decision as a table: a situation, and the one action that follows."""

from dataclasses import replace
from pathlib import Path

import pytest

from finetune_agent.decide import Do, Situation, choose, decide
from finetune_agent.engines.base import EngineView
from finetune_agent.paths import candidate_name, version_directory
from finetune_agent.state import Fault
from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason

ROOT = Path("/adapters")
BOT = "bot"
OLD = DesiredVersion(uri="s3://b/old", digest="sha256:" + "a" * 64)
NEW = DesiredVersion(uri="s3://b/new", digest="sha256:" + "b" * 64)
OLD_PATH, NEW_PATH = (str(version_directory(ROOT, BOT, version.digest)) for version in (OLD, NEW))
CANDIDATE = candidate_name(BOT, NEW.digest)
REFUSAL = Fault(Reason.PROOF_FAILED, "not the same")
FAILURE = Fault(Reason.DOWNLOAD_FAILED, "away", not_before=100.0)


def engine(**adapters: str) -> EngineView:
    return EngineView(("base",), {name.replace("candidate", CANDIDATE): path for name, path in adapters.items()}, "1")


BEGIN = Situation(BOT, ROOT, NEW, engine=engine())
FETCHED = replace(BEGIN, on_disk=frozenset({OLD.digest, NEW.digest}))
BASE = replace(FETCHED, bases_proven=frozenset({OLD.digest, NEW.digest}))
SERVING_OLD = replace(BASE, engine=engine(bot=OLD_PATH), proven=frozenset({(BOT, OLD_PATH)}), fallbacks=(OLD,))
BESIDE = replace(SERVING_OLD, engine=engine(bot=OLD_PATH, candidate=NEW_PATH))
BOTH_PROVEN = replace(BESIDE, proven=frozenset({(BOT, OLD_PATH), (CANDIDATE, NEW_PATH)}))

CASES = {
    "nothing is there": (BEGIN, Do.DOWNLOAD, "Downloading", None),
    "downloads do not wait for the engine": (replace(BEGIN, engine=None), Do.DOWNLOAD, "Downloading", None),
    "the engine is away": (replace(FETCHED, engine=None), Do.NOTHING, "Pending", None),
    "the base is proven before anything is loaded": (FETCHED, Do.PROVE_BASE, "Proving", "base"),
    "then it is loaded under a name of its own": (BASE, Do.LOAD_CANDIDATE, "Loading", CANDIDATE),
    "and proven there": (replace(BASE, engine=engine(candidate=NEW_PATH)), Do.PROVE, "Proving", CANDIDATE),
    "a first version needs no drain": (
        replace(BASE, engine=engine(candidate=NEW_PATH), proven=frozenset({(CANDIDATE, NEW_PATH)})),
        Do.SWAP,
        "Loading",
        BOT,
    ),
    "an old version serves while the new one is fetched": (
        replace(SERVING_OLD, on_disk=frozenset()),
        Do.DOWNLOAD,
        "Downloading",
        None,
    ),
    "an old version is drained": (BOTH_PROVEN, Do.DRAIN, "Draining", BOT),
    "then the name moves": (replace(BOTH_PROVEN, drained=True), Do.SWAP, "Loading", BOT),
    "what has the name is proven under it": (replace(BASE, engine=engine(bot=NEW_PATH)), Do.PROVE, "Proving", BOT),
    "an unproven holder of the name is not drained": (
        replace(BOTH_PROVEN, proven=frozenset({(CANDIDATE, NEW_PATH)}), refused={OLD.digest: REFUSAL}),
        Do.SWAP,
        "Loading",
        BOT,
    ),
    "the candidate goes when its name is served": (
        replace(BASE, engine=engine(bot=NEW_PATH, candidate=NEW_PATH), proven=frozenset({(BOT, NEW_PATH)})),
        Do.UNLOAD,
        "Active",
        CANDIDATE,
    ),
    "all is done": (
        replace(BASE, engine=engine(bot=NEW_PATH), proven=frozenset({(BOT, NEW_PATH)})),
        Do.NOTHING,
        "Active",
        None,
    ),
    "a restarted agent first proves what serves": (replace(SERVING_OLD, proven=frozenset()), Do.PROVE, "Proving", BOT),
    "a refused version leaves the old one serving": (
        replace(SERVING_OLD, refused={NEW.digest: REFUSAL}),
        Do.NOTHING,
        "Refused",
        None,
    ),
    "a refused candidate is taken out": (
        replace(BESIDE, refused={NEW.digest: REFUSAL}),
        Do.UNLOAD,
        "Refused",
        CANDIDATE,
    ),
    "the old version comes back when the new one failed under the name": (
        replace(BASE, engine=engine(bot=NEW_PATH), fallbacks=(OLD,), refused={NEW.digest: REFUSAL}),
        Do.LOAD_CANDIDATE,
        "Refused",
        candidate_name(BOT, OLD.digest),
    ),
    "without an older version a refused one loses the name": (
        replace(BASE, engine=engine(bot=NEW_PATH), refused={NEW.digest: REFUSAL}),
        Do.UNLOAD,
        "Refused",
        BOT,
    ),
    "a failure is waited for": (
        replace(SERVING_OLD, failed={NEW.digest: FAILURE}, now=50.0),
        Do.NOTHING,
        "Failed",
        None,
    ),
    "and tried again": (
        replace(SERVING_OLD, failed={NEW.digest: FAILURE}, now=101.0),
        Do.LOAD_CANDIDATE,
        "Loading",
        CANDIDATE,
    ),
    "while it fails and nothing serves, the old version does": (
        replace(BASE, fallbacks=(OLD,), failed={NEW.digest: FAILURE}, now=50.0),
        Do.LOAD_CANDIDATE,
        "Failed",
        candidate_name(BOT, OLD.digest),
    ),
    "a removed adapter is drained": (replace(SERVING_OLD, target=None, fallbacks=()), Do.DRAIN, "Draining", BOT),
    "then unloaded": (replace(SERVING_OLD, target=None, fallbacks=(), drained=True), Do.UNLOAD, "Draining", BOT),
    "the name of another's adapter is left alone": (
        replace(BASE, engine=engine(bot="/models/x")),
        Do.NOTHING,
        "Refused",
        None,
    ),
    "so is the base's own name": (replace(BASE, engine=EngineView((BOT,))), Do.NOTHING, "Refused", None),
    "a stale candidate goes first": (
        replace(BASE, engine=EngineView(("base",), {f"{BOT}@ffffffffffff": "/adapters/bot/" + "f" * 64})),
        Do.UNLOAD,
        "Loading",
        f"{BOT}@ffffffffffff",
    ),
}


@pytest.mark.parametrize(("situation", "do", "state", "name"), CASES.values(), ids=CASES.keys())
def test_decision(situation: Situation, do: Do, state: str, name: str | None) -> None:
    decision = decide(situation)
    assert (decision.do, decision.state) == (do, state)
    if name is not None:
        assert decision.name == name


def test_a_refusal_is_told_while_the_old_version_serves() -> None:
    decision = decide(replace(SERVING_OLD, refused={NEW.digest: REFUSAL}))
    assert (decision.reason, decision.message) == (Reason.PROOF_FAILED, "not the same")


def test_each_step_leads_on_until_all_is_done() -> None:
    """Carrying out what is decided, and nothing else, ends with the new version served and nothing left to do."""
    situation = replace(SERVING_OLD, on_disk=frozenset({OLD.digest}), bases_proven=frozenset())
    adapters, steps = {BOT: OLD_PATH}, []
    for _ in range(20):
        decision = decide(replace(situation, engine=EngineView(("base",), dict(adapters), "1")))
        steps.append(decision.do)
        digest = frozenset({NEW.digest})
        match decision.do:
            case Do.NOTHING:
                break
            case Do.DOWNLOAD:
                situation = replace(situation, on_disk=situation.on_disk | digest)
            case Do.PROVE_BASE:
                situation = replace(situation, bases_proven=situation.bases_proven | digest)
            case Do.LOAD_CANDIDATE:
                adapters[decision.name or ""] = decision.path or ""
            case Do.PROVE:
                situation = replace(situation, proven=situation.proven | {(decision.name or "", decision.path or "")})
            case Do.DRAIN:
                situation = replace(situation, drained=True)
            case Do.SWAP:
                adapters[BOT] = decision.path or ""
            case Do.UNLOAD:
                del adapters[decision.name or ""]
    assert adapters == {BOT: NEW_PATH}
    assert steps == [
        Do.DOWNLOAD,
        Do.PROVE_BASE,
        Do.LOAD_CANDIDATE,
        Do.PROVE,
        Do.DRAIN,
        Do.SWAP,
        Do.PROVE,
        Do.UNLOAD,
        Do.NOTHING,
    ]


def test_nothing_is_chosen_where_everything_was_refused() -> None:
    assert choose(replace(SERVING_OLD, refused={NEW.digest: REFUSAL, OLD.digest: REFUSAL})) is None
