"""The benchmark of roll-outs runs, and reads their parts from the agents' logs. Its numbers are not tested."""

import json

import pytest

from bench.rollout.__main__ import PARTS, main, make_table
from bench.rollout.timeline import read_times
from devcluster.cluster import Cluster

LOG = """
90.000000 bot (aaaaaaaaaaaa): swap bot
90.500000 bot is proven: 100% of the trained effect is there
101.000000 bot (bbbbbbbbbbbb): download
102.000000 bot (bbbbbbbbbbbb): prove base base
102.100000 base is proven: the base differs by 0.0000 nats per token
102.500000 bot (bbbbbbbbbbbb): load candidate bot@bbbbbbbbbbbb
103.000000 bot (bbbbbbbbbbbb): prove bot@bbbbbbbbbbbb
103.100000 bot@bbbbbbbbbbbb is proven: 100% of the trained effect is there
104.000000 bot: draining, the pod leaves the Service
108.000000 bot (bbbbbbbbbbbb): swap bot
108.250000 bot is proven: 100% of the trained effect is there
""".splitlines()
DIGEST = f"sha256:{'b' * 64}"


def test_the_parts_of_a_roll_out_are_those_of_the_agents_log() -> None:
    times = read_times(LOG, "bot", DIGEST, changed=100.0, given=100.5)
    assert vars(times) == {
        "turn": 0.5,
        "told": 0.5,
        "download": 1.0,
        "load": 0.5,
        "proof": 1.5,
        "drain": 4.0,
        "swap": 0.25,
    }
    assert times.total == 8.25
    assert times.own == 0.5 + 1.5 + 0.25


def test_a_pod_that_is_alone_does_not_drain() -> None:
    times = read_times([line for line in LOG if "draining" not in line], "bot", DIGEST, changed=100.0, given=100.5)
    assert times.drain == 0
    assert times.total == 8.25


def test_a_pod_that_does_not_serve_the_version_is_an_error() -> None:
    with pytest.raises(KeyError, match="proven"):
        read_times(LOG[:-1], "bot", DIGEST, changed=100.0, given=100.5)


def test_two_pods_take_a_new_version(cluster_with_crds: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--pods", "2", "--rounds", "1", "--cluster", cluster_with_crds.name, "--output", "json"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)["pods"]
    parts = results["2"]["parts"]
    assert set(parts) == set(PARTS)
    assert parts["drain"]["median"] > 3, "a pod leaves its Service before its name moves"
    assert results["2"]["status"]["max"] >= results["2"]["all_pods"]["max"]
    assert make_table(results).row_count > len(PARTS)
