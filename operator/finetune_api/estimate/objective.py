"""Define what an objective adds to a micro-step: sequences of a row, a reference, and logits.

The terms are those of TRL 1.16. tests/estimate/test_objectives.py compares them with what TRL's trainers hold on a CPU.
"""

from dataclasses import dataclass, replace
from typing import Literal

from finetune_api.estimate.modules import Architecture, Module
from finetune_api.finetunejob import Objective
from finetune_api.linear import SCORE_HEAD
from finetune_api.methods import Method, Targeted


@dataclass(frozen=True)
class Passes:
    """The passes of a micro-step through the model.

    Attributes:
        sequences: Sequences of each row that the trained pass takes at once: two where answers are compared.
        head: What is made of the last hidden states: log-probabilities in tiles of the vocabulary, the logits of all
            tokens at once, or a score.
        reference: Whether a frozen copy of the adapter, or without an adapter of the model, is held.
        forwards: Untrained forward passes for each trained one.
    """

    sequences: int
    head: Literal["tiles", "logits", "score"] = "tiles"
    reference: bool = False
    forwards: int = 0


PASSES: dict[Objective, Passes] = {
    "sft": Passes(1),
    "dpo": Passes(2, reference=True, forwards=1),
    # the mismatched answers of the KL divergence by the model, and both kinds by the reference
    "kto": Passes(1, reference=True, forwards=3),
    "orpo": Passes(2, head="logits"),
    "reward": Passes(2, head="score"),
}


def model_of(objective: Objective, architecture: Architecture) -> Architecture:
    """Return the model that the objective trains: a reward model has a score in place of the vocabulary."""
    if objective != "reward":
        return architecture
    head = Module(SCORE_HEAD, "linear", architecture.hidden, 1)
    return replace(architecture, modules=(*architecture.modules[:-1], head))


def method_of(objective: Objective, method: Method) -> Method:
    """Return the method with all that the objective trains: for a reward model also the score head."""
    block = method.config
    if objective != "reward" or not isinstance(block, Targeted):
        return method
    saved = [*block.modules_to_save, SCORE_HEAD]
    return method.model_copy(update={method.name: block.model_copy(update={"modules_to_save": saved})})
