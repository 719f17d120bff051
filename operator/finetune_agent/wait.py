"""Wait until the pod's agent has downloaded and checked every version (``python -m finetune_agent.wait``).

An init container of a pod whose template carries the versions runs it, so that the engine starts with them. It reads
no credentials and decides nothing: the agent downloads, tries again, and reports.
"""

import http.client
import logging
import os
import time
from http import HTTPStatus

from finetune_agent.settings import PORT

log = logging.getLogger("finetune_agent.wait")

PAUSE_SECONDS = 0.5


def wait_for_versions(port: int) -> None:
    """Return when the agent has every version, and log each change of what is missing."""
    logged = ""
    while True:
        fetched, text = _ask(port)
        if text != logged:
            log.info("%s", text)
            logged = text
        if fetched:
            return
        time.sleep(PAUSE_SECONDS)


def _ask(port: int) -> tuple[bool, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/fetched")
        answer = connection.getresponse()
        return answer.status == HTTPStatus.OK, answer.read().decode().strip()
    except (OSError, http.client.HTTPException) as error:
        return False, f"the agent does not answer yet ({type(error).__name__})"
    finally:
        connection.close()


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    wait_for_versions(int(os.environ.get("FINETUNE_AGENT_PORT", PORT)))
