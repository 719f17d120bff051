"""Save a whole model as transformers does, and check that the files hold it bit for bit."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from finetune_api.reasons import Reason
from finetune_trainer.models import loading
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log


def save_model(model: Any, directory: Path, **options: Any) -> None:
    """Save a whole model; ``options`` are those of ``save_pretrained``.

    The caller copies the base's generation_config.json afterwards, so that base and model generate alike.
    """
    replace_invalid_generation_config(model)
    model.save_pretrained(str(directory), safe_serialization=True, **options)


def replace_invalid_generation_config(model: Any) -> None:
    """Replace a generation configuration that transformers loads but refuses to save.

    An example is that of Llama 2: it has a temperature, but no ``do_sample``.
    """
    if not model.can_generate():
        return
    try:
        model.generation_config.validate(strict=True)
    except (TypeError, ValueError) as error:
        log.warning("generation_config.json is copied from the base as it is: %s", " ".join(str(error).split())[:200])
        tokens = {
            name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        model.generation_config = GenerationConfig(**tokens)  # type: ignore[no-untyped-call]


def check_saved_model(model: Any, directory: Path) -> None:
    """Load the saved model into main memory, and check that its parameters and buffers are those of ``model``.

    The files may use other names than the modules: transformers renames, splits and joins tensors as it loads them.

    Raises:
        Failure: VERIFICATION_FAILED if they differ, or cannot be loaded.
    """
    try:
        saved, info = type(model).from_pretrained(
            directory, dtype=next(model.parameters()).dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        if loading.is_machine_error(error):
            raise
        raise _mismatch(f"transformers cannot load it ({' '.join(str(error).split())[:300]})") from error
    if missing := sorted(info["missing_keys"]):
        raise _mismatch(f"the files lack {missing[0]}")
    tensors = saved.state_dict()
    for name, weight in model.state_dict().items():
        if name not in tensors or not torch.equal(tensors[name].to(weight.dtype), weight.detach().cpu()):
            raise _mismatch(f"{name} differs")


def _mismatch(difference: str) -> Failure:
    return Failure(Reason.VERIFICATION_FAILED, f"the saved model, loaded again, is not the trained one: {difference}")
