"""One dataclass of options, and durations as people write them."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.durations import seconds, text
from batchrun.errors import ConfigError
from batchrun.jobs import job
from batchrun.options import (
    OPTION_NAMES,
    SETTING_NAMES,
    FailureLimit,
    RunOptions,
    checked_option,
    checked_setting,
    failure_limit,
    with_options,
)


@pytest.mark.parametrize(
    ("written", "meant"),
    [(90, 90.0), (0.5, 0.5), ("30", 30.0), ("30s", 30.0), ("5m", 300.0), ("2h", 7200.0), (" 1.5 d ", 129600.0), ("250ms", 0.25)],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(written: object, meant: float) -> None:
    assert seconds(written) == meant


def test_a_timedelta_is_a_duration() -> None:
    assert seconds(timedelta(minutes=2)) == 120.0


@pytest.mark.parametrize("wrong", ["10 parsecs", "", "-5", "1e3", True, None, float("nan"), float("inf"), "٣s", [1]])
def test_what_is_no_duration_is_refused_with_examples(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"is no duration; write seconds or a text such as 30, '30s', '5m' or '2h'"):
        seconds(wrong)


@pytest.mark.parametrize(
    ("duration_s", "shown"), [(0.41, "0.4 s"), (12, "12 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_shown_in_one_or_two_units(duration_s: float, shown: str) -> None:
    assert text(duration_s) == shown


@given(st.floats(min_value=0, max_value=1e9))
def test_any_duration_can_be_shown(duration_s: float) -> None:
    assert text(duration_s)


@pytest.mark.parametrize("value", [-1, "4", True, 2.5, 10**9])
def test_workers_out_of_range_name_the_range_and_an_example(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        with_options(RunOptions(), {"workers": value}, where="--")
    assert (
        str(caught.value) == f"--workers: {value!r} is not a whole number from 0 to 1,024, such as 4 (0 runs inline), or 'auto'"
    )


@pytest.mark.parametrize("value", [0, -5, "0s"])
def test_a_timeout_must_be_above_zero(value: object) -> None:
    with pytest.raises(ConfigError, match=r"timeout: .* is not above 0; write seconds, '30s', '5m' or '2h'"):
        with_options(RunOptions(), {"timeout": value})


def test_an_unknown_option_is_met_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="wrokers: there is no such option; did you mean 'workers'"):
        with_options(RunOptions(), {"wrokers": 1})


@pytest.mark.parametrize("name", ["batched", "read_only"])
def test_what_needs_a_session_is_refused_without_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: needs a session"):
        with_options(RunOptions(transaction="none"), {name: True})


def test_every_option_has_a_check_that_takes_its_default() -> None:
    for field in fields(RunOptions):
        assert checked_option(field.name, field.default) == field.default
    assert tuple(field.name for field in fields(RunOptions)) == OPTION_NAMES


@pytest.mark.parametrize(("written", "meant"), [(5, "5"), ("5", "5"), ("2%", "2%"), ("0.5%", "0.5%"), (FailureLimit(3), "3")])
def test_a_failure_limit_is_a_number_or_a_percentage(written: object, meant: str) -> None:
    assert str(failure_limit(written)) == meant


@pytest.mark.parametrize("wrong", [-1, True, "101%", "x", "%", 1.5, "nan%"])
def test_other_failure_limits_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="is neither a number of items nor a percentage, such as 10 or '2%'"):
        failure_limit(wrong)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("timezone", "Mars/Olympus", "'Mars/Olympus' is no time zone"),
        ("timezone", "../../etc/passwd", "is no time zone"),
        ("schedule", "", "is no cron expression"),
        ("if_running", "skp", "'skp' is not one of skip, wait, fail"),
        ("enabled", "yes", "'yes' is not true or false"),
        ("on_unfinished", "continue", "is not one of new, resume"),
    ],
)
def test_a_wrong_setting_of_a_job_is_refused(name: str, wrong: object, message: str) -> None:
    assert name in SETTING_NAMES
    with pytest.raises(ValueError, match=message):
        checked_setting(name, wrong)


def test_the_decorator_checks_options_and_settings_at_once() -> None:
    with pytest.raises(ConfigError, match="@job nightly: if_running: 'skp' is not one of"):

        @job(if_running="skp")
        def nightly(session: object, item: object) -> None: ...

    with pytest.raises(ConfigError, match="@job daily: timeout: '10 parsecs' is no duration"):

        @job(timeout="10 parsecs")
        def daily(session: object, item: object) -> None: ...
