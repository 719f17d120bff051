"""The local cache: the newest state wins, whatever the order of arrival."""

import json
import tracemalloc
from collections.abc import Callable

import pytest
import yaml

from finetune_operator import cache as cache_module
from finetune_operator.cache import Cache
from finetune_operator.kube.kinds import ADAPTER_DEPLOYMENT, FINETUNE_JOB, JOB, JOB_LABEL, POD, Object
from tests.operator.fake_cluster import finetune_job
from tests.operator.test_golden import GOLDEN


def item(name: str, version: int, uid: str = "", owner: str = "o", **labels: str) -> Object:
    return {
        "metadata": {
            "namespace": "ns",
            "name": name,
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(version),
            "labels": {f"finetune-operator.io/{label}": value for label, value in labels.items()},
            "ownerReferences": [{"uid": owner, "controller": True}],
            "managedFields": [{"manager": "somebody"}],
        },
        "status": {"version": version},
    }


def versions(items: list[Object]) -> dict[str, int]:
    return {item["metadata"]["name"]: item["status"]["version"] for item in items}


def test_an_older_state_never_replaces_a_newer_one() -> None:
    cache = Cache()
    assert cache.put(JOB, item("a", 9))
    assert not cache.put(JOB, item("a", 8))
    assert not cache.put(JOB, item("a", 9))
    assert cache.put(JOB, item("a", 10)), "10 is newer than 9, though not as a string"
    assert versions(cache.list_all(JOB)) == {"a": 10}


def test_an_event_that_comes_after_the_deletion_does_not_bring_it_back() -> None:
    cache = Cache()
    cache.put(JOB, item("a", 1))
    assert cache.remove(JOB, item("a", 3))
    assert not cache.put(JOB, item("a", 2))
    assert cache.get(JOB, "ns", "a") is None
    assert cache.put(JOB, item("a", 4, uid="another")), "a new object of the same name is another one"


def test_the_late_deletion_of_an_older_object_leaves_its_successor() -> None:
    cache = Cache()
    cache.put(JOB, item("a", 5, uid="new"))
    assert not cache.remove(JOB, item("a", 3, uid="old"))
    assert cache.get(JOB, "ns", "a") is not None


def test_fine_tune_jobs_are_selected_by_labels_and_the_others_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache()
    for name, team in (("a", "red"), ("b", "blue"), ("c", "red")):
        resource = item(name, 1)
        cache.put(FINETUNE_JOB, resource | {"metadata": resource["metadata"] | {"labels": {"team": team}}})
    cache.put(FINETUNE_JOB, {"metadata": {"namespace": "other", "name": "d", "uid": "d", "resourceVersion": "1"}})
    unpacked: list[str] = []
    genuine = cache_module._unpack

    def unpack(entry: cache_module.Entry) -> Object:
        unpacked.append(entry.uid)
        return genuine(entry)

    monkeypatch.setattr(cache_module, "_unpack", unpack)
    assert versions(cache.list_selected("ns", lambda labels: labels.get("team") == "blue")) == {"b": 1}
    assert unpacked == ["uid-b"]
    assert versions(cache.list_selected("ns", lambda labels: True)) == {"a": 1, "b": 1, "c": 1}
    cache.put(FINETUNE_JOB, item("b", 2))
    assert cache.list_selected("ns", lambda labels: "team" in labels and labels["team"] == "blue") == []


def test_adapter_deployments_are_found_by_what_they_refer_to() -> None:
    cache = Cache()
    sources = {
        "by-name": {"fineTuneJobRef": {"name": "job"}},
        "by-labels": {"selector": {}},
        "by-uri": {"uri": "s3://x"},
    }
    for name, source in sources.items():
        spec = {"adapter": source, "target": {"deploymentRef": {"name": f"for-{name}"}}}
        cache.put(ADAPTER_DEPLOYMENT, {**item(name, 1), "spec": spec})
    assert list(versions(cache.list_targeting("ns", "for-by-uri"))) == ["by-uri"]
    assert list(versions(cache.list_takers("ns", "job"))) == ["by-name", "by-labels"]
    assert list(versions(cache.list_takers("ns", "another"))) == ["by-labels"]
    assert cache.list_takers("elsewhere", "job") == cache.list_targeting("elsewhere", "for-by-uri") == []


def test_found_by_owner_and_by_our_labels_as_they_change() -> None:
    cache = Cache()
    cache.put(JOB, item("a", 1, owner="x", role="trainer"))
    cache.put(JOB, item("b", 1, owner="x", role="preflight"))
    cache.put(POD, item("p", 1, owner="x", role="trainer"))
    assert versions(cache.list_owned(JOB, "x")) == {"a": 1, "b": 1}
    assert versions(cache.list_labelled(JOB, "ns", "finetune-operator.io/role", "trainer")) == {"a": 1}
    cache.put(JOB, item("a", 2, owner="y", role="other"))
    assert versions(cache.list_owned(JOB, "x")) == {"b": 1}
    assert versions(cache.list_owned(JOB, "y")) == {"a": 2}
    assert cache.list_labelled(JOB, "ns", "finetune-operator.io/role", "trainer") == []


def test_what_a_list_does_not_have_was_deleted_unseen() -> None:
    cache = Cache()
    for name in ("kept", "gone"):
        cache.put(JOB, item(name, 1))
    cache.put(JOB, item("newer-than-the-list", 8))
    vanished = cache.drop_vanished(JOB, None, {"uid-kept"}, 5)
    assert [resource["metadata"]["name"] for resource in vanished] == ["gone"]
    assert versions(cache.list_all(JOB)) == {"kept": 1, "newer-than-the-list": 8}


def test_a_list_of_one_namespace_leaves_the_others() -> None:
    cache = Cache()
    cache.put(JOB, item("a", 1))
    assert cache.drop_vanished(JOB, "elsewhere", set(), 5) == []
    assert cache.get(JOB, "ns", "a") is not None


def test_nobody_changes_an_object_that_the_cache_gave_to_another() -> None:
    cache = Cache()
    cache.put(JOB, item("a", 1))
    for copied in (cache.get(JOB, "ns", "a"), *cache.list_all(JOB)):
        assert copied is not None
        copied["metadata"]["name"] = "changed"
    assert versions(cache.list_all(JOB)) == {"a": 1}


def test_it_keeps_no_managed_fields_and_no_pod_specs_of_our_jobs() -> None:
    cache = Cache()
    big = item("a", 1, finetunejob="x")
    assert JOB_LABEL in big["metadata"]["labels"]
    cache.put(JOB, {**big, "spec": {"template": {"spec": {}}}})
    cached = cache.get(JOB, "ns", "a")
    assert cached is not None
    assert "managedFields" not in cached["metadata"]
    assert cached["spec"] == {}


def test_the_fields_that_decide_an_outcome_survive() -> None:
    cache = Cache()
    body = item("a", 1, finetunejob="x")
    status = {
        "phase": "Failed",
        "reason": "Evicted",
        "message": "disk",
        "conditions": [{"type": "DisruptionTarget"}],
        "containerStatuses": [{"name": "trainer", "image": "x", "state": {"terminated": {"exitCode": 1}}}],
        "podIPs": [{"ip": "10.0.0.1"}],
    }
    cache.put(POD, {**body, "spec": {"nodeName": "node-1", "containers": []}, "status": status})
    cached = cache.get(POD, "ns", "a")
    assert cached is not None
    assert cached["spec"] == {"nodeName": "node-1"}
    assert cached["status"] == {
        **{name: status[name] for name in ("phase", "reason", "message", "conditions")},
        "containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 1}}}],
    }


def test_finished_jobs_take_a_fraction_of_what_their_objects_take() -> None:
    status = yaml.safe_load((GOLDEN / "succeeded.yaml").read_text())["status"]
    text = json.dumps(finetune_job(status=status))
    jobs = 200

    def fill_cache() -> object:
        cache = Cache()
        for number in range(jobs):
            job = json.loads(text)
            job["metadata"] |= {"name": f"job-{number}", "uid": f"{number}", "resourceVersion": f"{number}"}
            cache.put(FINETUNE_JOB, job)
        return cache

    plain = allocated(lambda: [json.loads(text) for _ in range(jobs)])
    assert allocated(fill_cache) < plain / 6


def allocated(fill: Callable[[], object]) -> int:
    """Return the bytes that what a function returns takes."""
    tracemalloc.start()
    filled = fill()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del filled
    return size
