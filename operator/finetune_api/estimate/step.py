"""Define the shape of a micro-step, and the bytes that modules keep of it for the backward pass."""

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.estimate.modules import Module


@dataclass(frozen=True)
class Step:
    """One micro-step of ``batch`` sequences with ``length`` tokens each."""

    batch: int
    length: int
    mixed: bool = True
    """Products are computed in bf16 or fp16, and trained weights are held in fp32."""
    masked: bool = False
    """Attention has its own mask, because rows are padded or packed. Grouped keys and values are then repeated."""
    packed: bool = False
    """Rows lie end to end under a mask as wide as all of them; attention that knows their borders needs no mask."""

    @property
    def element(self) -> int:
        """Return the bytes of a number in most activations."""
        return 2 if self.mixed else 4


def cast_bytes(weights: int, step: Step) -> int:
    """Return the bytes of the bf16 copies that autocast makes of trained weights."""
    return 2 * weights if step.mixed else 0


def input_bytes(modules: Iterable[Module], step: Step) -> int:
    """Return the bytes per token of the inputs that adapted modules keep: a cast copy for each, or shared ones."""
    modules = list(modules)
    return step.element * sum(module.inputs for module in modules) if step.mixed else shared_input_bytes(modules, step)


def shared_input_bytes(modules: Iterable[Module], step: Step) -> int:
    """Return the bytes per token of the modules' inputs, where modules with the same input keep it once."""
    groups = {_input_name(module): module.inputs for module in modules if not is_attention_output(module)}
    return step.element * sum(groups.values())


def is_attention_output(module: Module) -> bool:
    """Return whether the module projects the result of attention."""
    return module.name.endswith(("attn.c_proj", ".o_proj", ".out_proj", "attn.dense", "attention.dense"))


def _input_name(module: Module) -> str:
    """Return a name for the module's input: modules with the same name share it."""
    if module.name.endswith(("down_proj", "mlp.c_proj", "4h_to_h", "fc2", "fc_out")):
        return "activation"
    return "feed-forward" if ".mlp." in module.name or module.name.endswith("fc1") else "attention"
