"""Save the last good step after the loop has run out of memory in the step after it."""

import traceback
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.distributed import random_state
from finetune_trainer.models import device
from finetune_trainer.runtime.logs import log


class LastStepCallback(TrainerCallback):
    """Keeps the random state of the last step, from which the next attempt repeats the step that failed."""

    def __init__(self) -> None:
        """Create it without a saved state."""
        self._random: dict[str, Any] | None = None
        self._saved_step: int | None = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note that the step has a checkpoint, which must not be written again while it is uploaded."""
        self._saved_step = state.global_step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget the last step, because the weights are about to change: if that fails, they cannot be saved."""
        self._random = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the random state of a step that is done."""
        self._random = random_state.current_state()

    def save(self, trainer: Any, error: BaseException) -> None:
        """Save a checkpoint of the last step, unless the failed one has changed the weights; raises nothing.

        Several processes save nothing: the others may be inside a collective call.
        """
        step = trainer.state.global_step
        if self._random is None or step == self._saved_step or trainer.args.world_size > 1:
            return
        try:
            traceback.clear_frames(error.__traceback__)  # they hold the activations
            trainer.model.zero_grad(set_to_none=True)
            device.free_memory()
            random_state.restore_state(self._random)
            log.info("out of memory in step %d: saving step %d, which was the last good one", step + 1, step)
            trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        except Exception as problem:  # noqa: BLE001 -- the attempt has failed already, and has older checkpoints
            log.warning("step %d could not be saved: %s", step, problem)
