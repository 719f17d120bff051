"""The agent's decision as a table: a situation, and the one action that follows."""

from dataclasses import replace
from pathlib import Path

import pytest

from finetune_agent.decide import Action, Situation, choose_version, decide
from finetune_agent.paths import candidate_name
from finetune_agent.state import Fault
from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason
from finetune_api.version_paths import version_directory
from finetune_engines.base import EngineState

ROOT = Path("/adapters")
BOT = "bot"
OLD = DesiredVersion(uri="s3://b/old", digest="sha256:" + "a" * 64)
NEW = DesiredVersion(uri="s3://b/new", digest="sha256:" + "b" * 64)
OLD_PATH, NEW_PATH = (str(version_directory(ROOT, BOT, version.digest)) for version in (OLD, NEW))
CANDIDATE = candidate_name(BOT, NEW.digest)
REFUSAL = Fault(Reason.PROOF_FAILED, "not the same")
FAILURE = Fault(Reason.DOWNLOAD_FAILED, "away", not_before=100.0)


def engine(**adapters: str) -> EngineState:
    return EngineState(("base",), {name.replace("candidate", CANDIDATE): path for name, path in adapters.items()}, "1")


BEGIN = Situation(BOT, ROOT, NEW, engine=engine())
FETCHED = replace(BEGIN, on_disk=frozenset({OLD.digest, NEW.digest}))
BASE = replace(FETCHED, bases_proven=frozenset({OLD.digest, NEW.digest}))
SERVING_OLD = replace(BASE, engine=engine(bot=OLD_PATH), proven=frozenset({(BOT, OLD_PATH)}), fallbacks=(OLD,))
BESIDE = replace(SERVING_OLD, engine=engine(bot=OLD_PATH, candidate=NEW_PATH))
BOTH_PROVEN = replace(BESIDE, proven=frozenset({(BOT, OLD_PATH), (CANDIDATE, NEW_PATH)}))

CASES = {
    "nothing is there": (BEGIN, Action.DOWNLOAD, "Downloading", None),
    "downloads do not wait for the engine": (replace(BEGIN, engine=None), Action.DOWNLOAD, "Downloading", None),
    "the engine is away": (replace(FETCHED, engine=None), Action.NOTHING, "Pending", None),
    "the base is proven before anything is loaded": (FETCHED, Action.PROVE_BASE, "Proving", "base"),
    "then it is loaded under a name of its own": (BASE, Action.LOAD_CANDIDATE, "Loading", CANDIDATE),
    "and proven there": (replace(BASE, engine=engine(candidate=NEW_PATH)), Action.PROVE, "Proving", CANDIDATE),
    "a first version needs no drain": (
        replace(BASE, engine=engine(candidate=NEW_PATH), proven=frozenset({(CANDIDATE, NEW_PATH)})),
        Action.SWAP,
        "Loading",
        BOT,
    ),
    "an old version serves while the new one is fetched": (
        replace(SERVING_OLD, on_disk=frozenset()),
        Action.DOWNLOAD,
        "Downloading",
        None,
    ),
    "an old version is drained": (BOTH_PROVEN, Action.DRAIN, "Draining", BOT),
    "then the name moves": (replace(BOTH_PROVEN, drained=True), Action.SWAP, "Loading", BOT),
    "what has the name is proven under it": (replace(BASE, engine=engine(bot=NEW_PATH)), Action.PROVE, "Proving", BOT),
    "an unproven holder of the name is not drained": (
        replace(BOTH_PROVEN, proven=frozenset({(CANDIDATE, NEW_PATH)}), refused={OLD.digest: REFUSAL}),
        Action.SWAP,
        "Loading",
        BOT,
    ),
    "the candidate goes when its name is served": (
        replace(BASE, engine=engine(bot=NEW_PATH, candidate=NEW_PATH), proven=frozenset({(BOT, NEW_PATH)})),
        Action.UNLOAD,
        "Active",
        CANDIDATE,
    ),
    "all is done": (
        replace(BASE, engine=engine(bot=NEW_PATH), proven=frozenset({(BOT, NEW_PATH)})),
        Action.NOTHING,
        "Active",
        None,
    ),
    "what was proven long ago is proven again": (
        replace(BASE, engine=engine(bot=NEW_PATH), proven=frozenset({(BOT, NEW_PATH)}), due=True),
        Action.PROVE_AGAIN,
        "Active",
        BOT,
    ),
    "what failed a later proof is loaded again": (
        replace(BASE, engine=engine(bot=NEW_PATH), spoiled=frozenset({NEW.digest})),
        Action.UNLOAD,
        "Loading",
        BOT,
    ),
    "a restarted agent first proves what serves": (
        replace(SERVING_OLD, proven=frozenset()),
        Action.PROVE,
        "Proving",
        BOT,
    ),
    "a refused version leaves the old one serving": (
        replace(SERVING_OLD, refused={NEW.digest: REFUSAL}),
        Action.NOTHING,
        "Refused",
        None,
    ),
    "a refused candidate is taken out": (
        replace(BESIDE, refused={NEW.digest: REFUSAL}),
        Action.UNLOAD,
        "Refused",
        CANDIDATE,
    ),
    "the old version comes back when the new one failed under the name": (
        replace(BASE, engine=engine(bot=NEW_PATH), fallbacks=(OLD,), refused={NEW.digest: REFUSAL}),
        Action.LOAD_CANDIDATE,
        "Refused",
        candidate_name(BOT, OLD.digest),
    ),
    "without an older version a refused one loses the name": (
        replace(BASE, engine=engine(bot=NEW_PATH), refused={NEW.digest: REFUSAL}),
        Action.UNLOAD,
        "Refused",
        BOT,
    ),
    "a failure is waited for": (
        replace(SERVING_OLD, failed={NEW.digest: FAILURE}, now=50.0),
        Action.NOTHING,
        "Failed",
        None,
    ),
    "and tried again": (
        replace(SERVING_OLD, failed={NEW.digest: FAILURE}, now=101.0),
        Action.LOAD_CANDIDATE,
        "Loading",
        CANDIDATE,
    ),
    "while it fails and nothing serves, the old version does": (
        replace(BASE, fallbacks=(OLD,), failed={NEW.digest: FAILURE}, now=50.0),
        Action.LOAD_CANDIDATE,
        "Failed",
        candidate_name(BOT, OLD.digest),
    ),
    "a removed adapter is drained": (replace(SERVING_OLD, target=None, fallbacks=()), Action.DRAIN, "Draining", BOT),
    "then unloaded": (replace(SERVING_OLD, target=None, fallbacks=(), drained=True), Action.UNLOAD, "Draining", BOT),
    "the name of another's adapter is left alone": (
        replace(BASE, engine=engine(bot="/models/x")),
        Action.NOTHING,
        "Refused",
        None,
    ),
    "so is the base's own name": (replace(BASE, engine=EngineState((BOT,))), Action.NOTHING, "Refused", None),
    "a stale candidate goes first": (
        replace(BASE, engine=EngineState(("base",), {f"{BOT}@ffffffffffff": "/adapters/bot/" + "f" * 64})),
        Action.UNLOAD,
        "Loading",
        f"{BOT}@ffffffffffff",
    ),
}


@pytest.mark.parametrize(("situation", "action", "state", "name"), CASES.values(), ids=CASES.keys())
def test_decision(situation: Situation, action: Action, state: str, name: str | None) -> None:
    decision = decide(situation)
    assert (decision.action, decision.state) == (action, state)
    if name is not None:
        assert decision.name == name


def test_a_refusal_is_reported_while_the_old_version_serves() -> None:
    decision = decide(replace(SERVING_OLD, refused={NEW.digest: REFUSAL}))
    assert (decision.reason, decision.message) == (Reason.PROOF_FAILED, "not the same")


def test_each_step_leads_to_the_next_until_all_are_done() -> None:
    """Carry out each decision, and nothing else: at the end the new version is served, and nothing is left to do."""
    situation = replace(SERVING_OLD, on_disk=frozenset({OLD.digest}), bases_proven=frozenset())
    adapters, steps = {BOT: OLD_PATH}, []
    for _ in range(20):
        decision = decide(replace(situation, engine=EngineState(("base",), dict(adapters), "1")))
        steps.append(decision.action)
        digest = frozenset({NEW.digest})
        match decision.action:
            case Action.NOTHING:
                break
            case Action.DOWNLOAD:
                situation = replace(situation, on_disk=situation.on_disk | digest)
            case Action.PROVE_BASE:
                situation = replace(situation, bases_proven=situation.bases_proven | digest)
            case Action.LOAD_CANDIDATE:
                adapters[decision.name or ""] = decision.path or ""
            case Action.PROVE:
                situation = replace(situation, proven=situation.proven | {(decision.name or "", decision.path or "")})
            case Action.DRAIN:
                situation = replace(situation, drained=True)
            case Action.SWAP:
                adapters[BOT] = decision.path or ""
            case Action.UNLOAD:
                del adapters[decision.name or ""]
    assert adapters == {BOT: NEW_PATH}
    assert steps == [
        Action.DOWNLOAD,
        Action.PROVE_BASE,
        Action.LOAD_CANDIDATE,
        Action.PROVE,
        Action.DRAIN,
        Action.SWAP,
        Action.PROVE,
        Action.UNLOAD,
        Action.NOTHING,
    ]


def test_nothing_is_chosen_where_everything_was_refused() -> None:
    assert choose_version(replace(SERVING_OLD, refused={NEW.digest: REFUSAL, OLD.digest: REFUSAL})) is None
