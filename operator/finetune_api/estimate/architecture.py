"""Derive a model's modules and their shapes from its config.json: what transformers would build."""

from collections.abc import Callable

from finetune_api.estimate import experts, gpt, llama
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
    **dict.fromkeys(experts.MIXTURES, experts.mixture),
}


def known() -> list[str]:
    """Return the values of ``model_type`` that have a closed form."""
    return sorted(_BUILDERS)


def architecture_of(config: Config) -> Architecture:
    """Return the architecture that a config.json describes.

    Raises:
        UnknownArchitectureError: There is no closed form for its ``model_type``; the message names those there are.
    """
    model_type = config.get("model_type")
    builder = _BUILDERS.get(model_type) if isinstance(model_type, str) else None
    if builder is None:
        raise UnknownArchitectureError(
            f"the estimate knows no closed form for model_type {model_type!r}; it knows: {', '.join(known())}"
        )
    return builder(config)
