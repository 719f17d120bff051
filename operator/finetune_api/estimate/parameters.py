"""Count the parameters that a method trains, and those of the tuned model, in closed form, as PEFT does."""

from dataclasses import dataclass

from finetune_api.estimate.expert_adapters import adapted_experts
from finetune_api.estimate.modules import Architecture, Module, NotCountedError
from finetune_api.estimate.targets import adapted_modules, scaled_inputs
from finetune_api.methods import LoraFields, Method, Targeted
from finetune_api.targets import is_trained_whole


@dataclass(frozen=True)
class Counts:
    """The result of ``peft.PeftModel.get_nb_trainable_parameters``."""

    trainable: int
    total: int
    """Parameters of base and adapter."""


def count(architecture: Architecture, method: Method) -> Counts:
    """Count the parameters of a method on a model.

    Raises:
        TargetError: The method names a module that the model does not have.
        NotCountedError: There is no closed form for the method on this model.
    """
    block = method.config
    if block.trains_all_weights:
        return Counts(architecture.parameters, architecture.parameters)
    if not isinstance(block, Targeted):
        adapter = block.count_parameters(architecture)
        return Counts(adapter, architecture.parameters + adapter)
    adapted = adapted_modules(architecture, method)
    _check_conv1d(adapted, block, method.name)
    scaled = scaled_inputs(architecture, method)
    adapter = sum(block.count_module_parameters(module, scaled) for module in adapted)
    adapter += sum(expert.parameters for expert in adapted_experts(architecture, method))
    frozen = block.frozen_parameters_per_module * len(adapted)
    saved = _count_saved(architecture, block)
    biases = _count_biases(architecture, block, adapted)
    return Counts(adapter + saved + biases, architecture.parameters + adapter + saved + frozen)


def _check_conv1d(adapted: tuple[Module, ...], block: Targeted, method: str) -> None:
    module = next((module for module in adapted if module.kind == "conv1d"), None)
    if module is not None and not block.adapts_conv1d:
        raise NotCountedError(f"PEFT's {method} does not adapt the Conv1D layers of GPT-2, such as {module.name}")


def _count_saved(architecture: Architecture, block: Targeted) -> int:
    """Count a trained copy of each module of ``modulesToSave``, also of tied ones.

    Source: peft/utils/other.py, ``ModulesToSaveWrapper``.
    """
    return sum(
        module.parameters + (module.inputs * module.outputs if module.tied else 0)
        for module in architecture.modules
        if is_trained_whole(module.name, block.modules_to_save)
    )


def _count_biases(architecture: Architecture, block: Targeted, adapted: tuple[Module, ...]) -> int:
    """Count the base's biases that are trained as well.

    Source: peft/tuners/tuners_utils.py, ``_mark_only_adapters_as_trainable``.
    """
    bias = block.bias if isinstance(block, LoraFields) else "none"
    chosen = {"none": (), "all": architecture.modules, "lora_only": adapted}[bias]
    return sum(module.outputs for module in chosen if module.bias)
