"""An adapter in S3 from which the training goes on: found, checked against the job, fetched, and put into the fresh one's place. Imports torch only to load."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import ModelSource
from finetune_api.manifest import MANIFEST_NAME, AdapterManifest
from finetune_api.methods import Method
from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri, parse_uri
from finetune_artifacts.digests import digest_of
from finetune_artifacts.download import download_adapter, download_files, parse_adapter_manifest, refuse_unsafe_files
from finetune_artifacts.errors import Purpose
from finetune_artifacts.objects import read_object
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

FIELD = "spec.model.adapter"
DECISIVE = (
    "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "oft_block_size", "coft", "block_share", "decompose_both",
    "decompose_factor", "projection_prng_key", "num_virtual_tokens",
)  # fmt: skip
"""Options with which the same weights mean the same update."""


@dataclass(frozen=True)
class StartingAdapter:
    """The adapter, and which of its forms the method can go on with."""

    manifest: AdapterManifest
    digest: str
    kept: bool
    """Whether it is the form in which it was trained, beside the published one."""


def find(settings: Settings, patience_seconds: float) -> StartingAdapter | None:
    """What ``spec.model.adapter`` names; None if it is not set. Raises Failure and ArtifactError."""
    source = settings.job.spec.model.adapter
    if source is None:
        return None
    store, place = settings.store(Purpose.ADAPTER, patience_seconds), _place(settings.job.spec.model)
    content = read_object(store, place.child(MANIFEST_NAME))
    digest = digest_of(content)
    if source.digest is not None and source.digest != digest:
        raise Failure(
            Reason.SPEC_INVALID,
            f"the adapter in {place} has the digest {digest}, expected {source.digest}: correct the digest, or name the adapter that it belongs to",
            f"{FIELD}.digest",
        )
    manifest = parse_adapter_manifest(store, place, content)
    base = canonical_name(settings)
    if manifest.base_model != base:
        raise Failure(
            Reason.SPEC_INVALID,
            f"the adapter in {place} was made for the base model {manifest.base_model}, and spec.model.uri is {base}: name the model that it was made for",
            FIELD,
        )
    return StartingAdapter(manifest, digest, _kept(settings.job.spec.method, manifest, place))


def other_revision(made_for: str | None, commit: str | None) -> Failure | None:
    """Why an adapter made for one commit of its base cannot go on with another; None where they are the same, or one of them has none."""
    if made_for is None or commit is None or made_for == commit:
        return None
    return Failure(
        Reason.SPEC_INVALID,
        f"the adapter of spec.model.adapter was made for the base model's commit {made_for}, and this job would train on {commit}: set the revision to {made_for}",
        "spec.model.revision",
    )


def fetch(settings: Settings, found: StartingAdapter, directory: Path, patience_seconds: float) -> Path:
    """The adapter's files on the local disk. Raises ArtifactError."""
    store = settings.store(Purpose.ADAPTER, patience_seconds)
    if found.kept and found.manifest.trained is not None:
        place = parse_uri(found.manifest.trained.uri)
        assert isinstance(place, S3Uri), "a manifest of ours names S3"  # noqa: S101
        refuse_unsafe_files(store, place, found.manifest.trained.files, pickles=True)
        download_files(store, place, found.manifest.trained.files, directory)
    else:
        download_adapter(store, _place(settings.job.spec.model), found.digest, directory)
    return directory


def load(model: Any, directory: Path, method: Method) -> None:
    """Put the adapter's weights into the place of the fresh ones. Raises Failure(SPEC_INVALID), which says what does not fit."""
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(directory / "adapter_model.safetensors")
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    if not isinstance(model, PeftModel):
        fields = method.config.to_json()
        _refuse(
            [
                f"{key} {config[key]}"
                for key in ("placement", "reductionFactor", "nonLinearity")
                if config[key] != fields[key]
            ]
        )
        model.load_state_dict(weights, strict=False)
        return
    ours = model.peft_config["default"].to_dict()
    _refuse([f"{key} {config.get(key)}" for key in DECISIVE if key in ours and config.get(key) != ours[key]])
    if other := sorted(set(get_peft_model_state_dict(model)) ^ set(weights)):
        _refuse([f"other modules, for example {other[0]}"])
    set_peft_model_state_dict(model, weights)


def _refuse(differences: list[str]) -> None:
    if differences:
        raise Failure(
            Reason.SPEC_INVALID,
            f"the adapter was trained with {', '.join(differences)}: set spec.method to the same, or remove spec.model.adapter",
            FIELD,
        )


def _place(model: ModelSource) -> S3Uri:
    place = parse_uri(model.adapter.uri) if model.adapter else None
    assert isinstance(place, S3Uri), "the adapter's address was checked"  # noqa: S101
    return place


def _kept(method: Method, manifest: AdapterManifest, place: S3Uri) -> bool:
    wanted = method.peft_type
    if manifest.peft_type == wanted:
        return False
    if manifest.trained is not None and manifest.trained_peft_type == wanted:
        return True
    kinds = " and ".join(dict.fromkeys(filter(None, (manifest.peft_type, manifest.trained_peft_type))))
    raise Failure(
        Reason.SPEC_INVALID,
        f"the adapter in {place} is of type {kinds}, with which {method.name} cannot go on: choose the method that it was trained with",
        FIELD,
    )
