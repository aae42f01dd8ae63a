"""Engine sets: a set is used until its last holder has released it."""

from __future__ import annotations

import pytest

from gateway.accounting.engine_set import EngineSet


def test_a_set_reports_the_release_of_its_last_holder() -> None:
    unused: list[bool] = []
    one = EngineSet({})
    one.hold()
    one.on_unused = lambda: unused.append(one.is_used)
    with one.held():
        one.release()
        assert (one.is_used, unused) == (True, [])
    assert (one.is_used, unused) == (False, [False])


def test_a_set_is_released_after_an_error() -> None:
    one = EngineSet({})
    with pytest.raises(ZeroDivisionError), one.held():
        raise ZeroDivisionError
    assert not one.is_used
