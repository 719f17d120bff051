"""From a model's config.json to its modules with their shapes, in closed form: what transformers would build, without building it."""

from collections.abc import Callable

from finetune_api.estimate import gpt, llama
from finetune_api.estimate.modules import Architecture
from finetune_api.estimate.shapes import Config, UnknownArchitectureError

_BUILDERS: dict[str, Callable[[Config], Architecture]] = dict.fromkeys(llama.LLAMAS, llama.llama) | {
    "gpt2": gpt.gpt2,
    "gpt_neo": gpt.gpt_neo,
    "gpt_neox": gpt.gpt_neox,
    "gptj": gpt.gptj,
    "phi": gpt.phi,
    "opt": gpt.opt,
    "falcon": gpt.falcon,
    "bloom": gpt.bloom,
}


def known() -> list[str]:
    """The values of ``model_type`` that have a closed form."""
    return sorted(_BUILDERS)


def architecture_of(config: Config) -> Architecture:
    """The architecture that a config.json describes. Raises UnknownArchitectureError, which names the known ones."""
    model_type = config.get("model_type")
    builder = _BUILDERS.get(model_type) if isinstance(model_type, str) else None
    if builder is None:
        raise UnknownArchitectureError(
            f"the estimate knows no closed form for model_type {model_type!r}; it knows: {', '.join(known())}"
        )
    return builder(config)
