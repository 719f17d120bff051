"""When containerd is ready for a kubelet: a kubelet that comes too early ends."""

from pathlib import Path

from devcluster.runtime import _cri_problem

STARTING = 'time="2026-01-01T00:00:00Z" level=info msg="starting containerd" version="1.6.20~ds1"\n'
BOOTED = 'time="2026-01-01T00:00:01Z" level=info msg="containerd successfully booted in 0.013449s"\n'
SERVING = 'time="2026-01-01T00:00:02Z" level=info msg="Start streaming server"\n'


def test_containerd_is_ready_once_this_very_process_of_it_serves_the_kubelet(tmp_path: Path) -> None:
    log = tmp_path / "containerd.log"
    log.write_text(STARTING + BOOTED + SERVING + STARTING + BOOTED)
    assert _cri_problem(log) == "its CRI server is not initialized yet"
    log.write_text(log.read_text() + SERVING)
    assert _cri_problem(log) is None
