"""Every engine in every situation: an adapter is served rightly, or refused with its reason before it gets the name.

The engines are doubles that keep what each version does wrong. ``UPDATE_GOLDEN=1`` writes the table of the docs.
"""

import math
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from finetune_api.engines import EngineName
from finetune_api.messages import DesiredVersion
from finetune_api.reasons import Reason
from tests.agent.fake_engine import BLOCK, FakeEngine, write_adapter
from tests.agent.fake_sglang import FakeSglang
from tests.agent.running_agent import RunningAgent, publish
from tools.testing.s3_server import S3Server
from tools.testing.waiting import wait_for

PAGE = Path(__file__).parents[2] / "docs" / "serving-matrix.md"
BOT = "support-bot"
EFFECT = 0.7
WARM = list(range(BLOCK + 2))
"""A prompt that fills a block of the engine's prefix cache."""
WAIT_SECONDS = 90
THREADS = 6


@dataclass
class Pod:
    """One pod of the matrix: an engine, the agent beside it, and what it takes to make adapters."""

    kind: EngineName
    engine: FakeEngine
    agent: RunningAgent
    publish: Callable[[Path], DesiredVersion]
    directory: Path

    def make(self, effect: float = EFFECT, **settings: object) -> DesiredVersion:
        """Publish an adapter."""
        name = f"adapter-{len(list(self.directory.iterdir()))}"
        return self.publish(write_adapter(self.directory / name, effect, **settings))  # type: ignore[arg-type]

    def want(self, *versions: tuple[str, DesiredVersion], **state: object) -> None:
        """Desire a version under each name."""
        self.agent.want(*(self.agent.adapter(name, version) for name, version in versions), engine=self.kind, **state)

    def ask(self, name: str = BOT, prompt: list[int] | None = None, tokens: int = 1) -> float:
        """Ask as a client does, and return the effect that the answer shows."""
        model = f"base:{name}" if self.kind == "sglang" else name
        key = {"Authorization": f"Bearer {self.engine.api_key}"} if self.engine.api_key else {}
        answer = httpx.post(
            f"http://127.0.0.1:{self.engine.port}/v1/completions",
            json={"model": model, "prompt": prompt or [1, 2], "max_tokens": tokens},
            headers=key,
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return float(answer.json()["choices"][0]["text"])

    def finish(self, version: DesiredVersion, name: str = BOT, effect: float = EFFECT) -> str:
        """Wait until the version is served, and check an answer, or until it is refused, and check the name."""

        def look() -> str | None:
            adapter = self.agent.adapter_report(name)
            if adapter.digest != version.digest:
                return None
            if adapter.active_digest == version.digest and self.agent.ready():
                return "served"
            return f"refused: `{adapter.reason}`" if adapter.state == "Refused" else None

        outcome = wait_for(look, WAIT_SECONDS, f"an outcome for {name}")
        if outcome == "served":
            assert self.ask(name, WARM) == effect
        else:
            assert not self.engine.loaded.get(name, "").endswith(version.digest[7:])
        return outcome


def serve(**settings: object) -> Callable[[Pod], str]:
    """Return the situation in which an adapter with these settings is to be served."""

    def run(pod: Pod) -> str:
        version = pod.make(**settings)  # type: ignore[arg-type]
        pod.want((BOT, version))
        return pod.finish(version)

    return run


def serve_first(pod: Pod, **state: object) -> DesiredVersion:
    """Let the pod serve a version."""
    version = pod.make()
    pod.want((BOT, version), **state)
    assert pod.finish(version) == "served"
    wait_for(lambda: list(pod.engine.loaded) == [BOT], 20, "the candidate is gone")
    return version


def warmed_prefix(pod: Pod) -> str:
    first, second = serve_first(pod), pod.make(0.4)
    assert pod.ask(prompt=WARM) == EFFECT
    pod.want((BOT, second))
    outcome = pod.finish(second, effect=0.4)
    if outcome != "served":  # the version before goes on
        assert (pod.ask(prompt=WARM), pod.agent.adapter_report(BOT).active_digest) == (EFFECT, first.digest)
    return outcome


def streaming_neighbour(pod: Pod) -> str:
    first, version = serve_first(pod), pod.make(0.4)
    answers: list[float] = []
    stream = threading.Thread(target=lambda: answers.append(pod.ask(tokens=100)))
    stream.start()
    wait_for(lambda: pod.engine.streams, 20, "the stream runs")
    pod.want((BOT, first), ("other", version))
    states = set[str]()

    def is_decided() -> bool:
        states.add(pod.agent.adapter_report("other").state)
        return bool(states & {"Draining", "Active"})

    wait_for(is_decided, WAIT_SECONDS, "a drain, or the other adapter")
    pod.engine.finish()
    stream.join(20)
    outcome = pod.finish(version, "other", 0.4)
    assert (answers, pod.engine.disturbed) == ([EFFECT], [])
    return f"{outcome}, after a drain" if "Draining" in states else outcome


def slept(pod: Pod) -> str:
    if pod.kind == "sglang":
        return "not known"
    version = serve_first(pod)
    pod.engine.asleep = True
    wait_for(lambda: not pod.agent.ready(), 20, "asleep")
    pod.engine.effects[BOT] = 0.0
    pod.engine.asleep = False
    return pod.finish(version)


def killed(pod: Pod) -> str:
    version = serve_first(pod)
    pod.engine.kill()
    pod.engine.start()
    return pod.finish(version)


def replaced(pod: Pod) -> str:
    version = serve_first(pod)
    pod.engine.effects[BOT], pod.engine.loaded[BOT] = 0.1, "/tmp/somebody"
    if pod.kind == "sglang":
        pod.engine.pinned.discard(BOT)  # type: ignore[attr-defined]
    wait_for(lambda: not pod.agent.ready(), 20, "the agent looks again")
    return pod.finish(version)


def lost(pod: Pod) -> str:
    version = pod.make()
    pod.agent.want(pod.agent.adapter(BOT, version, prove_every_seconds=0.2), engine=pod.kind)
    assert pod.finish(version) == "served"
    pod.engine.effects[BOT] = 0.0
    wait_for(lambda: pod.agent.adapter_report(BOT).failed_reproofs, 30, "a later proof fails")
    return pod.finish(version)


def rotated_key(pod: Pod) -> str:
    secret = pod.agent.settings.secrets_directory / "engine-key"
    secret.mkdir()
    (secret / "API_KEY").write_text("old")
    pod.engine.api_key = "old"
    version = serve_first(pod, api_key_secret="engine-key")
    pod.engine.api_key = "new"
    wait_for(lambda: not pod.agent.ready(), 20, "the old key is refused")
    (secret / "API_KEY").write_text("new")
    return pod.finish(version)


def bad_number(pod: Pod) -> str:
    directory = write_adapter(pod.directory / "nan", EFFECT)
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + struct.pack("<f", math.nan))
    version = pod.publish(directory)
    pod.want((BOT, version))
    return pod.finish(version)


def nothing_loaded(pod: Pod) -> str:
    pod.engine.fail_load = lambda name, path: PlainTextResponse("Success")
    if isinstance(pod.engine, FakeSglang):
        pod.engine._register = lambda name, path, *, pinned: ""  # type: ignore[method-assign]
    return serve()(pod)


def name_of_the_base(pod: Pod) -> str:
    version = pod.make()
    pod.want(("base", version))
    return pod.finish(version, "base")


SITUATIONS: dict[str, Callable[[Pod], str]] = {
    "a plain LoRA": serve(),
    "a new version, with a warm prefix cache": warmed_prefix,
    "a load while another adapter streams": streaming_neighbour,
    "rsLoRA, not folded": serve(use_rslora=True),
    "alpha pattern, not folded": serve(alpha_pattern={"q_proj": 64}),
    "rank pattern, not folded": serve(rank_pattern={"q_proj": 8}),
    "PiSSA, not converted": serve(init_lora_weights="pissa"),
    "DoRA": serve(use_dora=True),
    "bias": serve(bias="all"),
    "modulesToSave": serve(modules_to_save=["lm_head"]),
    "rank above the engine's maximum": serve(rank=64),
    "a NaN among the weights": bad_number,
    "modules that match nothing": serve(applied=0.0),
    "effect × 0.5": serve(applied=EFFECT * 0.5),
    "effect × 0.75": serve(applied=EFFECT * 0.75),
    "effect × 1.5": serve(applied=EFFECT * 1.5),
    "another base, or revision of it": serve(seed=2),
    "the base's own name": name_of_the_base,
    "200, and nothing is loaded": nothing_loaded,
    "somebody puts another adapter under the name": replaced,
    "the engine loses the weights later": lost,
    "sleep and wake, with the weights lost": slept,
    "the engine is killed": killed,
    "the engine's key is rotated": rotated_key,
}
VERSIONS: dict[str, EngineName] = {
    "vLLM 0.25": "vllm",
    "vLLM 0.30": "vllm",
    "vLLM 0.33": "vllm",
    "SGLang 0.5.23": "sglang",
}


@contextmanager
def running_pod(title: str, s3: S3Server) -> Iterator[Pod]:
    """Run an engine of a version, and an agent beside it."""
    kind = VERSIONS[title]
    with tempfile.TemporaryDirectory() as name, FakeSglang() if kind == "sglang" else FakeEngine() as engine:
        if kind == "vllm":
            engine.version = f"{title.split()[1]}.0"
        directory = Path(name)
        (directory / "adapters").mkdir()
        bucket = s3.create_bucket(f"matrix-{directory.name.lower().replace('_', '-').strip('-')}")
        with RunningAgent(directory / "pod", s3, engine.port) as agent:
            yield Pod(kind, engine, agent, lambda path: publish(s3, bucket, path.name, path), directory / "adapters")


def run_cell(s3: S3Server, title: str, situation: str) -> str:
    """Return the outcome of one situation."""
    with running_pod(title, s3) as pod:
        return SITUATIONS[situation](pod)


def render(outcomes: dict[tuple[str, str], str]) -> str:
    """Render the table."""
    rows = [["", *VERSIONS], ["---"] * (1 + len(VERSIONS))]
    rows += [[situation, *(outcomes[title, situation] for title in VERSIONS)] for situation in SITUATIONS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_each_engine_serves_rightly_or_the_adapter_is_refused(s3_server: S3Server) -> None:
    cells = [(title, situation) for situation in SITUATIONS for title in VERSIONS]
    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = dict(zip(cells, pool.map(lambda cell: run_cell(s3_server, *cell), cells), strict=True))
    table = render(outcomes)
    head, _, _ = PAGE.read_text().partition("|  |")
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(f"{head}{table}")
    assert PAGE.read_text() == f"{head}{table}"


def test_the_table_has_every_situation_and_no_reason_that_is_none() -> None:
    text = PAGE.read_text()
    assert [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()[-len(SITUATIONS) :]] == [*SITUATIONS]
    for part in text.split("refused: `")[1:]:
        assert part.partition("`")[0] in set(Reason)
