"""Signals before a run is open: what they raise may be swallowed, and they are heeded all the same."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import weakref
from collections.abc import Iterator

import pytest

from batchrun.cli.signals import Interrupted, SignalWatch
from batchrun.plans import StopRequest


class Thing:
    """Something a weak reference can be made of."""


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


@pytest.fixture
def watch(stop: StopRequest) -> Iterator[SignalWatch]:
    with SignalWatch(stop, lambda: "", keeps=False) as made:
        yield made


def swallowed(number: signal.Signals = signal.SIGTERM) -> None:
    """The signal comes while a weak reference's callback runs, as those of SQLAlchemy's registries do."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert reference() is None


def test_the_first_interrupts_and_the_second_leaves_the_way_out_alone(watch: SignalWatch, stop: StopRequest) -> None:
    with pytest.raises(Interrupted, match="SIGTERM"):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert watch.came_late
    assert watch.exit_code == 143


def test_one_that_is_swallowed_ends_the_run_once_it_is_open(
    watch: SignalWatch, stop: StopRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    swallowed()
    assert capsys.readouterr().err == ""
    watch.opened()
    assert (stop.level, stop.reason, watch.exit_code) == (1, "SIGTERM", 143)


def test_behind_one_that_is_swallowed_the_second_interrupts(watch: SignalWatch) -> None:
    swallowed()
    with pytest.raises(Interrupted, match="SIGINT"):
        signal.raise_signal(signal.SIGINT)


def test_the_third_leaves_at_once_whatever_became_of_the_others(watch: SignalWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    for _ in range(3):
        with contextlib.suppress(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert left == [130]


def test_other_errors_that_nobody_can_catch_are_told_as_ever(stop: StopRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    with SignalWatch(stop, lambda: "", keeps=False):
        thing = Thing()
        reference = weakref.ref(thing, lambda _: 1 / 0)
        del thing
        assert reference() is None
    assert told == [ZeroDivisionError]
