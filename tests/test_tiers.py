"""Each test has one tier, and the unit tier runs without torch."""

import sys

import pytest

from tests.tiers import NoTorch, tiers_of


def test_every_collected_test_has_exactly_one_tier(request: pytest.FixtureRequest) -> None:
    assert [item.nodeid for item in request.session.items if len(tiers_of(item)) != 1] == []


def test_a_session_of_the_unit_tier_has_not_imported_torch(request: pytest.FixtureRequest) -> None:
    if request.config.option.markexpr == "unit":
        assert "torch" not in sys.modules


def test_the_import_hook_refuses_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoTorch(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"Mark the test with pytest\.mark\.trains"):
        import torch  # noqa: F401 -- the import is what is tested
