"""Start the training from an adapter in S3: find it, check it against the job, download and load it.

Torch is imported only to load it.
"""

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
CONFIG_KEYS_TO_MATCH = (
    "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "oft_block_size", "coft",
    "block_share", "decompose_both", "decompose_factor", "projection_prng_key", "num_virtual_tokens",
)  # fmt: skip
"""Options that must be equal so that the same weights mean the same update."""


@dataclass(frozen=True)
class StartingAdapter:
    """The manifest of the starting adapter, and which of its forms the method can train."""

    manifest: AdapterManifest
    digest: str
    is_trained_form: bool
    """Whether the form is that of the training, which is stored in addition to the published one."""


def find_adapter(settings: Settings, patience_seconds: float) -> StartingAdapter | None:
    """Read and check the manifest of ``spec.model.adapter``; None if it is not set.

    Raises:
        Failure: The adapter does not fit the job.
        ArtifactError: S3 fails or refuses.
    """
    source = settings.job.spec.model.adapter
    if source is None:
        return None
    store, uri = settings.store(Purpose.ADAPTER, patience_seconds), _adapter_uri(settings.job.spec.model)
    content = read_object(store, uri.child(MANIFEST_NAME))
    digest = digest_of(content)
    if source.digest is not None and source.digest != digest:
        raise Failure(
            Reason.SPEC_INVALID,
            f"the adapter in {uri} has the digest {digest}, expected {source.digest}: "
            "correct the digest, or name the adapter that it belongs to",
            f"{FIELD}.digest",
        )
    manifest = parse_adapter_manifest(store, uri, content)
    base = canonical_name(settings)
    if manifest.base_model != base:
        raise Failure(
            Reason.SPEC_INVALID,
            f"the adapter in {uri} was trained on the base model {manifest.base_model}, and spec.model.uri is {base}: "
            "name the model that it was trained on",
            FIELD,
        )
    return StartingAdapter(manifest, digest, _select_form(settings.job.spec.method, manifest, uri))


def compare_base_revisions(trained_on: str | None, commit: str | None) -> Failure | None:
    """Return a Failure if the adapter was trained on another commit of its base, else None."""
    if trained_on is None or commit is None or trained_on == commit:
        return None
    return Failure(
        Reason.SPEC_INVALID,
        f"the adapter of spec.model.adapter was trained on the base model's commit {trained_on}, and this job would "
        f"train on {commit}: set the revision to {trained_on}",
        "spec.model.revision",
    )


def download(settings: Settings, adapter: StartingAdapter, directory: Path, patience_seconds: float) -> Path:
    """Download the adapter's files, and return their directory.

    Raises:
        ArtifactError: S3 fails or refuses.
    """
    store = settings.store(Purpose.ADAPTER, patience_seconds)
    if adapter.is_trained_form and adapter.manifest.trained is not None:
        uri = parse_uri(adapter.manifest.trained.uri)
        assert isinstance(uri, S3Uri), "the operator's manifests name S3"  # noqa: S101
        refuse_unsafe_files(store, uri, adapter.manifest.trained.files, pickles=True)
        download_files(store, uri, adapter.manifest.trained.files, directory)
    else:
        download_adapter(store, _adapter_uri(settings.job.spec.model), adapter.digest, directory)
    return directory


def load_weights(model: Any, directory: Path, method: Method) -> None:
    """Load the weights of the starting adapter into the fresh adapter.

    Raises:
        Failure: SPEC_INVALID if its options or modules differ from the method's.
    """
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
    own_config = model.peft_config["default"].to_dict()
    _refuse(
        [
            f"{key} {config.get(key)}"
            for key in CONFIG_KEYS_TO_MATCH
            if key in own_config and config.get(key) != own_config[key]
        ]
    )
    if unmatched := sorted(set(get_peft_model_state_dict(model)) ^ set(weights)):
        _refuse([f"other modules, for example {unmatched[0]}"])
    set_peft_model_state_dict(model, weights)


def _refuse(differences: list[str]) -> None:
    if differences:
        raise Failure(
            Reason.SPEC_INVALID,
            f"the adapter was trained with {', '.join(differences)}: "
            "set spec.method to the same, or remove spec.model.adapter",
            FIELD,
        )


def _adapter_uri(model: ModelSource) -> S3Uri:
    uri = parse_uri(model.adapter.uri) if model.adapter else None
    assert isinstance(uri, S3Uri), "the job's checks allow S3 only"  # noqa: S101
    return uri


def _select_form(method: Method, manifest: AdapterManifest, uri: S3Uri) -> bool:
    """Return whether the method continues from the form of the training instead of the published one.

    Raises:
        Failure: SPEC_INVALID: neither form is of the method's type.
    """
    peft_type = method.peft_type
    if manifest.peft_type == peft_type:
        return bool(manifest.folded)  # the trained form still has the options that were folded into the weights
    if manifest.trained is not None and manifest.trained_peft_type == peft_type:
        return True
    kinds = " and ".join(dict.fromkeys(filter(None, (manifest.peft_type, manifest.trained_peft_type))))
    raise Failure(
        Reason.SPEC_INVALID,
        f"the adapter in {uri} is of type {kinds}, which {method.name} cannot continue: "
        "choose the method that it was trained with",
        FIELD,
    )
