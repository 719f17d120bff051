"""What the whole attempt has in hand."""

from dataclasses import dataclass
from pathlib import Path

from finetune_artifacts.store import Place
from finetune_trainer.data.sources import Inputs
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.process import Process
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.session.tracking import Trackers


@dataclass(frozen=True)
class Session:
    """What the whole attempt has in hand."""

    settings: Settings
    inputs: Inputs
    output: Place
    run: Run
    interruption: Interruption
    reporter: Reporter
    trackers: Trackers
    process: Process

    @property
    def scratch(self) -> Path:
        """Directory for the files of this attempt."""
        return self.settings.scratch / "run"
