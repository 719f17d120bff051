"""Choose the weights files of a model that transformers loads: those that the index names. Needs no torch."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.reasons import Reason
from finetune_artifacts.safetensors import Tensor
from finetune_trainer.runtime.failures import Failure

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
INDEX_SUFFIX = ".safetensors.index.json"
EXPLICIT = "transformers_weights"
"""Key of config.json with the name of the file that transformers loads in place of the usual ones."""
ADAPTER_CONFIG = "adapter_config.json"
FIELD = "spec.model.uri"
MAX_NAMES = 5


@dataclass(frozen=True)
class WeightFiles:
    """The weights files that transformers loads, in their order.

    ``indexed`` has the file of each tensor that the index names; ``warnings`` say which other weights are not used.
    """

    names: list[str]
    indexed: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def choose_weight_files(
    files: Collection[str], read_json: Callable[[str], dict[str, Any]], address: str
) -> WeightFiles:
    """Choose the files that transformers loads, and check that they are there.

    Args:
        files: The names of the model's files.
        read_json: Reads one of them.
        address: The model's address for messages.

    Raises:
        Failure: MODEL_NOT_FOUND: there is no config.json. MODEL_UNSUPPORTED: files are missing, or contradict others.
    """
    files = [name for name in files if "/" not in name]
    file_names = ", ".join(sorted(files)[:10])
    if "config.json" not in files:
        if ADAPTER_CONFIG in files:
            raise Failure(
                Reason.MODEL_NOT_FOUND,
                f"{address} is an adapter, not a model: name its base here, and the adapter in spec.model.adapter.uri",
                FIELD,
            )
        raise Failure(
            Reason.MODEL_NOT_FOUND,
            f"{address} has no config.json: it is not a transformers model; found: {file_names}",
            FIELD,
        )
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        raise _unsupported(
            f"{address} has no *.safetensors file; pickled weights can run code and are not loaded; "
            f"found: {file_names}. Save it with save_pretrained"
        )
    if ADAPTER_CONFIG in files:
        raise _unsupported(
            f"{address} has an {ADAPTER_CONFIG} beside the model: transformers would put that adapter on the model. "
            "Remove the adapter's files; to continue from an adapter, name it in spec.model.adapter.uri"
        )
    if named := read_json("config.json").get(EXPLICIT):
        return _open_named(named, read_json, set(files), address)
    if SINGLE in files:
        return WeightFiles([SINGLE], warnings=_list_unused(weights, [SINGLE], address))
    if INDEX not in files:
        raise _unsupported(
            f"{address} has neither {SINGLE} nor {INDEX}, which name the weights that are loaded; found: "
            f"{', '.join(sorted(weights)[:10])}. Save the model with save_pretrained"
        )
    return _read_index(read_json(INDEX), set(weights), address)


def _open_named(name: Any, read_json: Callable[[str], dict[str, Any]], files: set[str], address: str) -> WeightFiles:
    """Choose the file, or the files of the index, that config.json names: transformers loads no other one then."""
    if not isinstance(name, str) or name not in files or not name.endswith((".safetensors", INDEX_SUFFIX)):
        raise _unsupported(
            f"config.json of {address} names the weights file {name!r} in {EXPLICIT}, which is no *.safetensors file "
            f"that is there: remove {EXPLICIT} from config.json, or upload that file"
        )
    weights = {file for file in files if file.endswith(".safetensors")}
    if name.endswith(INDEX_SUFFIX):
        return _read_index(read_json(name), weights, address)
    return WeightFiles([name], warnings=_list_unused(sorted(weights), [name], address))


def check_indexed_tensors(weights: WeightFiles, tensors: Collection[str], address: str) -> None:
    """Check that the files have the tensors that the index names.

    Raises:
        Failure: MODEL_UNSUPPORTED if one is missing.
    """
    if missing := [name for name in weights.indexed if name not in tensors]:
        raise _unsupported(
            f"{INDEX} of {address} names {len(missing)} tensors that the files do not have, {missing[0]} in "
            f"{weights.indexed[missing[0]]} among them: files of two models are mixed. Upload the model again"
        )


def list_unloaded(weights: WeightFiles, files: Collection[str]) -> list[str]:
    """List the weights files that are not loaded, and so need no download."""
    return sorted(name for name in files if name.endswith(".safetensors") and name not in weights.names)


def join_headers(weights: WeightFiles, read: Callable[[str], dict[str, Tensor]], address: str) -> dict[str, Tensor]:
    """Read the headers of the chosen files.

    Args:
        weights: The files.
        read: Reads the header of one of them.
        address: The model's address for messages.

    Raises:
        Failure: MODEL_UNSUPPORTED for a damaged file, or one that lacks a tensor of the index.
    """
    tensors: dict[str, Tensor] = {}
    for name in weights.names:
        try:
            tensors |= read(name)
        except ValueError as error:
            raise _unsupported(f"{name} is not a complete safetensors file: {error}. Upload it again") from error
        except OSError as error:
            raise unreadable(name, address, error) from error
    check_indexed_tensors(weights, tensors, address)
    return tensors


def unreadable(name: str, address: str, error: OSError) -> Failure:
    """Return the Failure for a local file that cannot be opened."""
    return _unsupported(
        f"{name} of {address} cannot be read ({error.strerror}): copy the file itself, not a link to another "
        "directory, and let the pods read it"
    )


def _read_index(index: dict[str, Any], weights: set[str], address: str) -> WeightFiles:
    indexed = index.get("weight_map")
    if not isinstance(indexed, dict) or not all(isinstance(name, str) for name in indexed.values()) or not indexed:
        raise _unsupported(f"{INDEX} of {address} has no weight_map: save the model again with save_pretrained")
    names = sorted(set(indexed.values()))
    if missing := [name for name in names if name not in weights]:
        raise _unsupported(
            f"{address} lacks {len(missing)} of the {len(names)} weights files that {INDEX} names: "
            f"{', '.join(missing[:MAX_NAMES])}. Upload them, too"
        )
    return WeightFiles(names, indexed, _list_unused(sorted(weights), names, address))


def _list_unused(weights: list[str], used: list[str], address: str) -> list[str]:
    unused = sorted(set(weights) - set(used))
    if not unused:
        return []
    more = f" and {len(unused) - MAX_NAMES} more" if len(unused) > MAX_NAMES else ""
    used_files = used[0] if len(used) == 1 else f"the {len(used)} files of {INDEX}"
    return [
        f"spec.model.uri: {address} also has {', '.join(unused[:MAX_NAMES])}{more}, which are not loaded: "
        f"the weights are in {used_files}"
    ]


def _unsupported(message: str) -> Failure:
    return Failure(Reason.MODEL_UNSUPPORTED, message, FIELD)
