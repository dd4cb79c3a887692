"""A rate, a window, an early end, the limits of the throttle: what needs no server and no clock but its own."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.chunks import ChunkSizer
from batchrun.config import load_settings
from batchrun.errors import ConfigError
from batchrun.governing import BURST_S, Bucket
from batchrun.options import RunOptions, checked_option, rate, rate_shown, with_options
from batchrun.plans import StopRequest
from batchrun.runs import RunStatus
from batchrun.throttling import Throttle, load_check
from batchrun.windows import Window, window, zoned


class Clock:
    """One that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------------------------------------------------- rate
@pytest.mark.parametrize(("written", "meant"), [(50, 50.0), ("50/s", 50.0), ("90/min", 1.5), ("6/h", 6 / 3600), ("0.5", 0.5)])
def test_a_rate_is_items_a_second_or_with_a_unit(written: object, meant: float) -> None:
    assert rate(written) == meant


@pytest.mark.parametrize("wrong", [0, -1, True, "fast", "5/day", "", None, float("nan"), float("inf"), [5]])
def test_what_is_no_rate_is_refused_with_examples(wrong: object) -> None:
    with pytest.raises(ValueError, match="is no rate; write items a second or a text such as 50, '50/s', '100/min' or '6/h'"):
        rate(wrong)


@pytest.mark.parametrize("written", ["50/s", "100/min", "6/h", "1/s", "7/min", "1,000/s"])
def test_a_rate_is_shown_as_people_write_it(written: str) -> None:
    assert rate_shown(rate(written.replace(",", ""))) == written


@pytest.mark.parametrize("name", ["rate", "window", "max_runtime"])
def test_the_text_none_takes_away_what_a_weaker_layer_set(name: str) -> None:
    assert checked_option(name, "none") is None


@given(
    st.sampled_from([0.1, 1.0, 7.0, 50.0, 1000.0]),
    st.lists(st.tuples(st.floats(0.001, 3.0), st.integers(1, 1000)), min_size=1, max_size=60),
)
def test_a_bucket_never_lets_out_more_than_the_rate_and_one_burst(per_s: float, turns: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket, began, out = Bucket(per_s, clock), clock.now, 0
    for passes_s, wanted in turns:
        clock.now += passes_s
        out += bucket.take(wanted)
        assert out <= (clock.now - began) * per_s + max(1.0, per_s * BURST_S) + 1e-6


def test_a_bucket_lets_out_the_whole_rate_to_one_who_asks_often() -> None:
    clock = Clock()
    bucket = Bucket(50.0, clock)
    out = 0
    for _ in range(1000):
        clock.now += 0.01
        out += bucket.take(1000)
    assert out == pytest.approx(500, abs=2)


def test_a_slow_rate_lets_out_one_item_at_once_and_tells_how_long_the_next_takes() -> None:
    clock = Clock()
    bucket = Bucket(0.5, clock)
    assert (bucket.most, bucket.take(10), bucket.take(10)) == (1, 1, 0)
    assert bucket.wait_s() == pytest.approx(2.0)
    bucket.give_back(1)
    assert bucket.take(1) == 1


def test_a_chunk_under_a_rate_is_no_larger_than_a_burst() -> None:
    sizer = ChunkSizer(2, has_database=True)
    for _ in range(30):
        sizer.learn(sizer.size(None), sizer.size(None) * 0.0001)
    assert sizer.size(None) > 100
    sizer.allow(2, Bucket(50.0).most)
    assert sizer.size(None) == 10
    sizer.allow(2, None)
    assert sizer.size(None) > 100


# -------------------------------------------------------------------------------------------------------- window
def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [("2026-11-27 21:59", False), ("2026-11-27 22:00", True), ("2026-11-28 05:59", True), ("2026-11-28 06:00", False)],
)
def test_a_window_over_midnight_is_open_from_its_first_minute_to_before_its_last(moment: str, is_open: bool) -> None:
    assert window("22:00-06:00 UTC").is_open(at(moment)) is is_open


def test_a_window_counts_by_the_clock_on_the_wall_of_its_zone_also_when_that_is_put_back() -> None:
    hours = window("02:00-03:00 Europe/Berlin")
    assert [hours.is_open(at(f"2026-10-25 {time}")) for time in ("00:30", "01:30", "02:30")] == [True, True, False]
    assert hours.closed_text(at("2026-10-25 12:05")) == (
        "its window 02:00-03:00 Europe/Berlin is closed: it is 13:05 there, and it opens at 02:00"
    )


@pytest.mark.parametrize("text", ["22:00-06:00", "00:00-24:00", "09:30-17:00 Europe/Berlin"])
def test_a_window_is_shown_as_it_was_written(text: str) -> None:
    assert str(window(text)) == text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("night", "is no window; write hours such as '22:00-06:00'"),
        ("22:00-25:00", "hours go from 00:00 to 24:00"),
        ("22:60-23:00", "hours go from 00:00 to 24:00"),
        ("08:00-08:00", "it ends when it begins"),
        ("00:00-24:00 Mars", "'Mars' is no time zone"),
        (22, "is no window"),
    ],
)
def test_what_is_no_window_is_refused(wrong: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_options(RunOptions(), {"window": wrong})


def test_a_window_takes_the_zone_of_its_job_unless_it_names_one() -> None:
    plain, own = (RunOptions(window=window(text)) for text in ("22:00-06:00", "22:00-06:00 UTC"))
    assert zoned(plain, "Asia/Tokyo").window == Window(1320, 360, "Asia/Tokyo")
    assert zoned(own, "Asia/Tokyo") is own
    assert zoned(RunOptions(), "Asia/Tokyo") == RunOptions()


# ----------------------------------------------------------------------------------------------------- early end
def test_the_first_signal_to_a_run_that_is_pausing_does_not_cut_its_items_off() -> None:
    stop = StopRequest()
    stop.end_as(RunStatus.PAUSED, "asked to pause")
    stop.request("SIGINT")
    assert (stop.level, stop.status, stop.reason) == (1, RunStatus.PAUSED, "asked to pause")
    stop.request("SIGINT")
    assert stop.level == 2


def test_a_run_that_was_interrupted_is_not_paused_any_more_but_can_be_cancelled() -> None:
    stop = StopRequest()
    stop.request("SIGTERM")
    stop.end_as(RunStatus.PAUSED, "asked to pause")
    assert (stop.level, stop.status, stop.reason) == (1, RunStatus.INTERRUPTED, "SIGTERM")
    stop.end_as(RunStatus.CANCELLED, "asked to cancel")
    assert (stop.level, stop.status, stop.reason) == (1, RunStatus.CANCELLED, "asked to cancel")


# ------------------------------------------------------------------------------------------------------ throttle
def test_the_throttle_is_off_unless_config_toml_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    assert not load_settings(cwd=tmp_path, environ={}).throttle.is_on
    (tmp_path / "config.toml").write_text(
        '[throttle]\nmax_replica_lag = "2s"\nmax_wal_backlog = "4GB"\ncheck = "shop.load:quiet"\n'
    )
    found = load_settings(cwd=tmp_path, environ={"BATCHRUN_THROTTLE_MAX_WAITING_LOCKS": "20"}).throttle
    assert found == Throttle(2.0, 20, None, 4_000_000_000, "shop.load:quiet", 5.0)
    assert found.asks_server


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_replica_lag = 0", "config.toml:2:1: throttle.max_replica_lag: 0 is not from 0.1 s to a day"),
        ("max_waiting_locks = 2.5", "throttle.max_waiting_locks: 2.5 is not a whole number of sessions"),
        ('check = "quiet"', "throttle.check: 'quiet' names no function; write 'package.module:function', a function that takes"),
        ("max_lag = 2", "throttle.max_lag: there is no such key; did you mean 'max_replica_lag'?"),
    ],
)
def test_a_wrong_limit_is_refused_with_its_place(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"[throttle]\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(cwd=tmp_path, environ={})
    assert said in str(caught.value)


def test_a_check_that_cannot_be_imported_is_refused_by_name() -> None:
    for dotted in ("nowhere.at_all:quiet", "batchrun.runs:quiet", "batchrun.runs:FINISHED"):
        with pytest.raises(ConfigError, match=rf"\[throttle\] check: '{dotted}' (cannot be imported|is not a function)"):
            load_check(dotted)
