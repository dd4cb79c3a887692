"""An Insight is bounded, adds up, and comes back from the ledger as it went in."""

from __future__ import annotations

import json

import pytest

from batchrun.events import Notice
from batchrun.execution import strategies
from batchrun.execution.orders import Ended, Order, Settled, Timing, Trouble
from batchrun.execution.pool import Died
from batchrun.execution.recording import Result
from batchrun.execution.timing import Stopwatch
from batchrun.gathering import Gathering, timed
from batchrun.insight import MOST_CLASSES, MOST_LANES, MOST_SLOW, MOST_STEPS, PER_OCTAVE, Insight, Latency
from batchrun.runs import Counts


def test_a_percentile_is_right_within_five_percent() -> None:
    latency = Latency()
    for thousandth in range(1, 1001):
        latency.add(thousandth / 1000)
    for percent in (50, 95, 99):
        assert latency.percentile(percent) == pytest.approx(percent / 100, rel=0.05)
    assert latency.items == 1000
    assert Latency().percentile(50) is None


def test_steps_of_the_histogram_meet_and_hold_every_item() -> None:
    latency = Latency()
    latency.add(0.001, 7)
    latency.add(0.0)
    (low, high, one), (since, until, seven) = latency.steps()
    assert (one, seven) == (1, 7)
    assert low <= 1e-9 <= high
    assert since <= 0.001 < until
    assert until / since == pytest.approx(2 ** (1 / PER_OCTAVE))


def test_the_timeline_stays_bounded_and_keeps_its_sums() -> None:
    insight = Insight()
    for second in range(10_000):
        insight.done[insight.step_of(float(second))] += 3
    assert len(insight.done) <= MOST_STEPS
    assert sum(insight.done) == 30_000
    assert len(insight.failed) == len(insight.done)


def test_what_can_grow_with_a_run_is_bounded() -> None:
    gathering = Gathering(None, Counts(), 1, str)
    order = Order(0, 0, list(range(10)))
    for worker in range(MOST_LANES + 50):
        gathering.ready(worker, worker, 0.01)
        gathering.heard(order, Settled(1, 10, [], None), worker)
        gathering.heard(order, Ended(1, 0.1, 0, Timing({-8: 10}, [(worker / 1000, 3)], 0.01, 0.0)), worker)
    for number in range(1000):
        gathering.insight.failed_with(f"Error{number}")
        gathering(Notice("WARNING", "x" * 10_000))
    found = gathering.insight
    assert len(found.lanes) == MOST_LANES
    assert sum(lane.items for lane in found.lanes) + 10 == (MOST_LANES + 50) * 10  # the lane that became "others" was one's own
    assert [slow.seconds for slow in found.slowest] == sorted((slow.seconds for slow in found.slowest), reverse=True)
    assert len(found.slowest) == MOST_SLOW
    assert len(found.errors) == MOST_CLASSES + 1
    assert len(gathering.text()) < 1_000_000


def test_it_comes_back_as_it_went_in_and_goes_on() -> None:
    gathering = Gathering(None, Counts(), 1, str)
    order = Order(0, 0, ["a", "b"])
    gathering.ready(0, 4711, 0.0)
    gathering.heard(order, Settled(1, 2, [], None), 0)
    gathering.heard(order, Ended(1, 0.25, 0, Timing({-16: 2}, [(0.2, 1)], 0.05, 0.1)), 0)
    gathering.died(Died(0, 4711, -9, [], [], was_ready=True, cause="the out-of-memory killer"))
    text = gathering.text()
    found = Insight.from_json(text)
    assert json.loads(found.to_json()) == json.loads(text)
    (lane,) = found.lanes
    assert (lane.items, lane.died, lane.pid) == (2, "the out-of-memory killer", 4711)
    assert lane.commit_s == pytest.approx(0.05)
    assert lane.task_s == pytest.approx(0.1)
    assert [(slow.item, slow.seconds) for slow in found.slowest] == [("b", 0.2)]
    again = Gathering(found, Counts(), 1, str)
    again.ready(0, 4712, 0.0)
    assert [lane.pid for lane in again.insight.lanes] == [4711, 4712]
    assert again.insight.breaks == [found.elapsed_s]
    assert again.now_s >= found.elapsed_s


def test_slow_items_are_redacted() -> None:
    gathering = Gathering(None, Counts(), 1, lambda text: text.replace("hunter2", "***"))
    gathering.heard(Order(0, 0, ["hunter2"]), Ended(1, 1.0, 0, Timing({0: 1}, [(1.0, 0)], 0.0, 0.0)), 0)
    assert [slow.item for slow in gathering.insight.slowest] == ["***"]


def test_a_stopwatch_shares_what_belongs_to_several_items() -> None:
    watch = Stopwatch()
    watch.spread([0.0, 0.0, 0.0, 0.0])
    watch.note(watch._last + 1.0, 4)
    assert watch.noted == 8
    assert watch.take()[-1] == (0.25, 4)
    assert watch.take() == []
    timing = watch.timing(0.5, 0.25)
    assert sum(timing.steps.values()) == 8
    assert timing.slowest[0] == (0.25, 4)
    assert timing[2:] == (0.5, 0.25)


def test_a_message_in_the_midst_of_a_list_times_no_item_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "FLUSH_S", 0.0)
    sent: list[object] = []
    report = strategies.Reporter(1, sent.append, wants_values=False, patience_s=0.0)
    report.watch.spread([0.5] * 10)
    for _ in range(10):
        report.add(Result("done"))
    assert len(sent) == 10
    assert report.watch.timing(0.0, 0.0).steps == {-8: 10}


def test_each_item_of_a_message_has_its_own_time_and_state() -> None:
    order = Order(0, 0, ["a", "b", "c"], reached=3)
    message = Settled(1, 3, [Trouble(1, "failed", None)], None, spans=[(0.5, 1), (0.25, 2)])
    events = list(timed(order, message, 7))
    assert [(event.item, event.status, event.seconds) for event in events] == [
        ("a", "done", 0.5), ("b", "failed", 0.25), ("c", "done", 0.25),
    ]  # fmt: skip
    assert events[1].began - events[0].began == pytest.approx(0.5)
    assert {event.worker for event in events} == {7}
