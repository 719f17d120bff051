"""Load the model's tokenizer, and read about its tokens in the model's files, without torch."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_trainer.data.tokens import Encoding
from finetune_trainer.runtime.failures import Failure

TOKENIZER_FILES = (
    "tokenizer", "special_tokens_map.json", "added_tokens.json", "vocab.", "merges.txt", "spiece.model",
    "chat_template", "generation_config.json",
)  # fmt: skip
"""Prefixes of the names of a tokenizer's files."""
LOADED_FIRST = ("tokenizer.json", "tokenizer.model", "tekken.json", "spiece.model", "vocab.json", "vocab.txt")
"""Files with the vocabulary; the first one that exists is read."""


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the model's tokenizer, with a padding token.

    Raises:
        Failure: MODEL_UNSUPPORTED: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        # The library tokenizers raises a bare Exception for a file that it cannot read.
        raise Failure(Reason.MODEL_UNSUPPORTED, describe_broken(directory, error), "spec.model.uri") from error
    size = count_embeddings(read_json(directory / "config.json"))
    if tokenizer.pad_token is None or (size is not None and tokenizer.pad_token_id >= size):
        # Replace a padding token that was added without an embedding. Padding is not learned, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def check_config(directory: Path) -> None:
    """Check that transformers can read the model's config.json. Runs no code of the model.

    Raises:
        Failure: MODEL_UNSUPPORTED: it cannot.
    """
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        # Strict configurations, and those of old models, raise exceptions of any class.
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"transformers {version('transformers')} cannot read the model's config.json "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}): correct it, or copy the file from the "
            "original model",
            "spec.model.uri",
        ) from error


def describe_broken(directory: Path, error: Exception) -> str:
    """Describe why a tokenizer cannot be loaded: the file, the versions that wrote and read it, and the error."""
    file = next((name for name in LOADED_FIRST if (directory / name).is_file()), "tokenizer_config.json")
    writer = read_json(directory / "tokenizer_config.json").get("transformers_version") or read_json(
        directory / "config.json"
    ).get("transformers_version")
    origin = f"transformers {writer} wrote the model" if writer else "the model does not say which version wrote it"
    return (
        f"the model's tokenizer cannot be loaded from {file} ({type(error).__name__}: {str(error).strip()[:300]}). "
        f"{origin}; tokenizers {version('tokenizers')} and transformers {version('transformers')} read it here. Save "
        "the tokenizer again with these versions (save_pretrained), or copy the file from the original model"
    )


def read_end_tokens(directory: Path) -> frozenset[int]:
    """Return the ids in generation_config.json that end a generation."""
    end_tokens = read_json(directory / "generation_config.json").get("eos_token_id")
    return frozenset(
        token for token in (end_tokens if isinstance(end_tokens, list) else [end_tokens]) if isinstance(token, int)
    )


def make_encoding(directory: Path, training_template: str | None) -> Encoding:
    """Return the settings of an encoder, by a model's files.

    Args:
        directory: The model's directory.
        training_template: TRL's training template, which replaces the tokenizer's chat template; None: there is none.
    """
    size = count_embeddings(read_json(directory / "config.json"))
    return Encoding(read_end_tokens(directory), size, training_template)


def count_embeddings(config: dict[str, Any]) -> int | None:
    """Return the number of tokens that the model has embeddings for, as its config.json says; None if it does not."""
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file is missing or invalid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy the model's tokenizer into a directory of weights, so that it can be used as a model."""
    for path in sorted(source.iterdir()):
        if path.name.startswith(TOKENIZER_FILES) and path.is_file():
            shutil.copyfile(path, directory / path.name)
