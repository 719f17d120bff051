"""Reading the mounted desired state. A file that cannot be read changes nothing: what was wanted last stays wanted."""

import logging
from pathlib import Path

from pydantic import ValidationError

from finetune_api.messages import DesiredState

log = logging.getLogger(__name__)


class DesiredFile:
    """The file ``desired.json`` as the kubelet keeps it: it is exchanged as a whole, through a symbolic link."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: str | None = None
        self._complaint = ""
        self.state: DesiredState | None = None

    def refresh(self) -> bool:
        """Read the file if it changed; whether the desired state is another one now."""
        try:
            text = self._path.read_text(encoding="utf-8")
            if text == self._text:
                return False
            state = DesiredState.model_validate_json(text)
        except (OSError, ValidationError) as error:
            self._complain(
                f"{self._path} cannot be read: {' '.join(str(error).split())[:300]}; going on with what was wanted before"
            )
            return False
        changed = state != self.state
        self._text, self._complaint, self.state = text, "", state
        return changed

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            log.warning("%s", text)
            self._complaint = text
