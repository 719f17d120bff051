"""Describe an engine that serves one merged model: TensorRT-LLM, TGI, or vLLM without LoRA, for example.

It is known by the OpenAI interface alone. Its driver, which needs an HTTP client, is imported only when one is opened.
"""

from collections.abc import Mapping

from finetune_engines.base import Driver, Engine, EngineKeys, EngineVersion


def judge_version(version: str | None) -> EngineVersion:
    """Return the properties of a version: nothing is loaded into the engine while it runs."""
    return EngineVersion(
        version=version,
        load_disturbs_requests=False,
        name_keeps_cache=False,
        find_misserved=lambda _: [],
        limits=(),
    )


def connect(url: str, keys: EngineKeys, paths: Mapping[str, str]) -> Driver:
    """Open a driver for the engine at ``url``, which was started with one of the models in ``paths``."""
    from finetune_engines.merged.driver import MergedDriver

    return MergedDriver(url, keys, paths)


ENGINE = Engine(
    name="merged",
    title="a merged model",
    port=8000,
    connect=connect,
    judge_version=judge_version,
    client_model=lambda _, name: name,
    serves_merged=True,
)
