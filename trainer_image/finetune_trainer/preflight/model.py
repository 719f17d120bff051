"""Check that the model can be read and trained, and that it has the modules that get an adapter."""

from finetune_api import roles, targets, transformers_tables
from finetune_api.estimate.architecture import known
from finetune_api.estimate.modules import NotCountedError
from finetune_api.finetunejob import Estimate
from finetune_api.linear import CONV1D_MODEL_TYPES
from finetune_api.methods import Bottleneck, Ia3, Lora, Peft, Qlora, Targeted
from finetune_api.reasons import Reason
from finetune_api.uris import HfUri, S3Uri, parse_uri
from finetune_trainer.models import base_files, loaded_tensors, method_fit, modules, peft_options, remote_code, shapes
from finetune_trainer.models.base_files import ModelMetadata
from finetune_trainer.models.estimate import list_warnings, make_estimate
from finetune_trainer.models.sublayers import UNKNOWN_SUBLAYERS, find_sublayers
from finetune_trainer.preflight.config_values import find_bad_value
from finetune_trainer.preflight.credentials import require_keys
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.preflight.length import check_length
from finetune_trainer.preflight.quantised import describe_quantised
from finetune_trainer.preflight.scoring import describe_without_score
from finetune_trainer.preflight.serving import list_serving_warnings
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import Settings

ENCODERS = {
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Types for which transformers has a causal language model, but which are one with ``is_decoder`` only."""
WORKSTATION_CACHE = (
    "spec.model.cache is a volume of a cluster and is not used here: an hf:// model is kept in the hub's own cache"
)


def check_model(settings: Settings, result: CheckResult, patience_seconds: float) -> None:
    """Check that the model can be trained and has the modules that get an adapter; estimate the memory."""
    spec = settings.job.spec
    if isinstance(parse_uri(spec.model.uri), S3Uri):
        require_keys(settings, spec.model.secret_ref, "spec.model.secretRef", Reason.MODEL_ACCESS_DENIED)
    metadata = base_files.read_metadata(settings, patience_seconds)
    result.metadata = metadata
    remote_code.check_remote_code(metadata.config, spec.model)
    if problem := describe_unsupported(metadata) or (
        describe_without_score(metadata.config) if spec.objective == "reward" else None
    ):
        raise Failure(Reason.MODEL_UNSUPPORTED, problem, "spec.model.uri")
    result.warnings += metadata.warnings
    if spec.model.cache is not None and settings.workstation:
        result.warnings.append(WORKSTATION_CACHE)
    if differences := shapes.find_differences(metadata.config, metadata.tensors, scores=spec.objective == "reward"):
        more = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"config.json and weights do not belong together: {differences[0]}{more}. Save the model again "
            "with save_pretrained, or copy both from the original model",
            "spec.model.uri",
        )
    check_length(spec, metadata, result)
    loaded = loaded_tensors.describe_loaded(metadata, trusts_remote_code=spec.model.trust_remote_code)
    check_modules(settings, loaded, result)
    result.warnings += list_serving_warnings(spec, str(metadata.config.get("model_type")), metadata.tensors)
    add_estimate(settings, loaded, result)
    if isinstance(parse_uri(spec.model.uri), HfUri):
        log.info("model %s at commit %s", spec.model.uri, metadata.commit)


def describe_unsupported(metadata: ModelMetadata) -> str | None:
    """Describe why this model cannot be trained; None if it can.

    Args:
        metadata: The model's metadata.
    """
    config, model_type = metadata.config, metadata.config.get("model_type")
    if config.get("is_encoder_decoder"):
        return f"the model ({model_type}) has an encoder and a decoder: objective sft needs a causal language model"
    if not metadata.has_tokenizer:
        return "the model's directory has no tokenizer (tokenizer.json or tokenizer.model): add it next to config.json"
    if isinstance(model_type, str) and not transformers_tables.is_known(model_type) and not config.get("auto_map"):
        return (
            f"transformers {transformers_tables.version()} has no causal language model of type {model_type!r}: choose "
            "a model that writes text"
        )
    if problem := describe_quantised(config, metadata.tensors) or find_bad_value(config, metadata.tensors):
        return problem
    if model_type in ENCODERS and not config.get("is_decoder"):
        return (
            f"the model ({model_type}) is an encoder: each token sees the ones after it, so it does not learn to write "
            "text. Choose a causal language model"
        )
    if model_type in ENCODERS and not shapes.has_encoder_head(metadata.tensors):
        return f"the weights of the model ({model_type}) have no head that writes text. Choose a causal language model"
    return None


def check_modules(settings: Settings, metadata: ModelMetadata, result: CheckResult) -> None:
    """Check that the modules that the method names exist, and count the parameters that it trains.

    Args:
        settings: The settings of the preflight.
        metadata: The model as transformers loads it.
        result: Gets the problems and the counts.
    """
    method = settings.job.spec.method
    block, path = method.config, f"spec.method.{method.name}"
    model_type = str(metadata.config.get("model_type"))
    linear = modules.list_linear_modules(metadata.tensors)
    if misfit := method_fit.describe_misfit(block, metadata.config, metadata.tensors):
        result.add(Reason.MODEL_UNSUPPORTED, path, misfit)
    elif isinstance(block, Bottleneck) and not find_sublayers(linear, block):
        result.add(Reason.MODEL_UNSUPPORTED, path, UNKNOWN_SUBLAYERS.format(model_type))
    if model_type in CONV1D_MODEL_TYPES and isinstance(block, Targeted) and not block.adapts_conv1d:
        result.add(
            Reason.MODEL_UNSUPPORTED,
            path,
            f"PEFT's {method.name} does not adapt the Conv1D layers of a model of type {model_type!r}: use lora, dora, "
            "adalora, ia3 or vera",
        )
    if isinstance(block, Peft):
        check_peft_options(block, metadata, result)
    if not isinstance(block, Targeted):
        return
    if not linear:
        result.add(
            Reason.TARGET_MODULES_NOT_FOUND,
            f"{path}.targetModules",
            "the model has no linear layers that could get an adapter",
        )
        return
    try:
        experts = targets.find_experts(block, model_type, metadata.tensors)
        chosen = targets.select_modules(
            list(linear),
            block,
            method.name,
            model_type,
            has_experts=roles.has_experts(metadata.tensors),
            experts=experts,
        )
        if isinstance(block, Ia3):
            targets.select_feedforward(chosen, block, model_type)
        method_fit.check_sizes(block, {name: linear[name] for name in chosen}, settings.job.spec.training.max_steps)
        names = modules.list_modules(metadata.tensors)
        targets.check_expression(names, linear, block.target_modules)
        targets.check_saved(names, modules.list_weighted(metadata.tensors), block.modules_to_save)
    except targets.TargetError as error:
        result.add(error.reason, f"{path}.{error.field}", str(error))
        return
    log.info("%d modules get an adapter: %s", len(chosen), ", ".join(roles.suffixes(chosen)))
    if isinstance(block, Lora | Qlora) and block.bias == "none" and not block.modules_to_save and not experts:
        trainable = modules.count_lora_parameters(linear, chosen, block)
        total = modules.count_parameters(metadata.tensors) + trainable
        result.estimate = Estimate(trainable_parameters=trainable, total_parameters=total)
        log.info("%s parameters, %s of them trainable", f"{total:,}", f"{trainable:,}")


def check_peft_options(block: Peft, metadata: ModelMetadata, result: CheckResult) -> None:
    """Check the options of ``spec.method.peft``, whose names alone the API knows."""
    text = shapes.language_config(metadata.config)
    layers = shapes.count_layers(text)
    try:
        peft_options.check_options(block, str(metadata.config.get("model_type")), layers, metadata.tensors)
    except targets.TargetError as error:
        result.add(error.reason, f"spec.method.peft.{error.field}", str(error))


def add_estimate(settings: Settings, metadata: ModelMetadata, result: CheckResult) -> None:
    """Add the estimate of the job's memory, or why the method cannot train this model.

    Args:
        settings: The settings of the preflight.
        metadata: The model as transformers loads it.
        result: Gets the estimate. Without one the model can still be trained.
    """
    if result.problems:
        return
    method = settings.job.spec.method
    try:
        result.estimate = make_estimate(settings.job.spec, metadata)
        result.warnings += list_warnings(result.estimate)
        if result.estimate.gpu_memory_bytes and metadata.config.get("model_type") not in known():
            result.warnings.append(
                f"GPU memory is estimated from the shapes of the weights, because model_type "
                f"{metadata.config.get('model_type')!r} has no closed form: activations may need more or less"
            )
    except targets.TargetError as error:
        result.add(error.reason, f"spec.method.{method.name}.{error.field}", str(error))
    except NotCountedError as error:
        if method.config.is_prompt_learning:  # counted for every model that the learned tokens fit
            result.add(Reason.MODEL_UNSUPPORTED, f"spec.method.{method.name}", str(error))
        else:
            result.warnings.append(f"GPU memory is not estimated: {error}")
    except ValueError as error:
        result.warnings.append(f"GPU memory is not estimated: {error}")
