"""Schedules without a server: expressions, words, firings at changes of the clock, crontab lines, calendars, what is due."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from batchrun.config import load_settings
from batchrun.errors import ConfigError
from batchrun.jobs import job
from batchrun.schedule.agenda import Agenda
from batchrun.schedule.calendars import calendar_lines
from batchrun.schedule.commands import missing_variables
from batchrun.schedule.crontab import crontab_line, with_block, without_block
from batchrun.schedule.expressions import checked_expression, firings, latest_firing, plain_fields, words
from batchrun.schedule.gathering import Scheduled
from batchrun.schedule.systemd import unit_files, write_units
from batchrun.schedule.zones import host_zone, show_the_same

BERLIN, HOST = ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")
SPRING, AUTUMN = "2027-03-28", "2026-10-25"  # 02:00 CET -> 03:00 CEST; 03:00 CEST -> 02:00 CET
NOW = datetime(2026, 10, 1, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def shown(expression: str, after: str, count: int) -> list[str]:
    return [f"{one:%d %H:%M %Z}" for one in itertools.islice(firings(expression, BERLIN, utc(after)), count)]


def scheduled(expression: str, timezone: str | None = None, name: str = "totals", if_running: str = "fail") -> Scheduled:
    return Scheduled(name, expression, timezone, ZoneInfo(timezone or "UTC"), True, if_running, "new", 10.0)


def project(folder: Path, config: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(config)
    return folder


# ---------------------------------------------------------------------------------------------------- expressions
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 3 * *", "it has 4 fields, not the five of minute, hour, day of month, month, day of week"),
        ("0 0 3 * * *", "it has 6 fields"),
        ("daily", "it has 1 field,"),
        ("61 3 * * *", "'61' in the minute is not from 0 to 59"),
        ("0 3 * * 8", "'8' in the day of week is not from 0 to 7 or SUN to SAT"),
        ("0 22-6 * * *", "the range '22-6' in the hour goes down; write it as two, 22-23,0-6"),
        ("*/0 * * * *", "the step of '*/0' in the minute is no whole number above 0"),
        ("*/90 * * * *", "the step of '*/90' is longer than the minute has values, 0 to 59"),
        ("0 0 30 2 *", "it never fires, because no such month has such a day"),
        ("1,,2 * * * *", "'' in the minute"),
        ("@reboot", "@reboot is no time"),
        ("@dayly", "the nicknames are @hourly, @daily"),
    ],
)
def test_a_wrong_expression_is_refused_with_what_is_wrong_and_an_example(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:

        @job(schedule=text)
        def totals(session: object, item: int) -> None: ...

    assert f"@job totals: schedule: {text!r} is no cron expression: {said}" in str(refused.value)
    assert str(refused.value).endswith("; write one such as '0 3 * * *' (every day at 03:00)")


def test_config_toml_is_checked_the_same_with_its_place(tmp_path: Path) -> None:
    project(tmp_path, '[jobs.totals]\nschedule = "0 25 * * *"\n')
    with pytest.raises(ConfigError, match=r"config.toml:2:1: jobs.totals.schedule: '0 25 \* \* \*' is no cron expression"):
        load_settings(cwd=tmp_path, environ={})


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("0 3 * * *", "every day at 03:00"),
        ("@daily", "every day at 00:00"),
        ("*/15 * * * *", "every 15 minutes"),
        ("0 * * * *", "every hour"),
        ("0 */2 * * *", "every 2 hours"),
        ("0 3 * * 1-5", "Monday through Friday at 03:00"),
        ("0 3 * * FRI", "every Friday at 03:00"),
        ("0 3 13 * 5", "at 03:00 on the 13th day of the month and every Friday"),
        ("0 3 21,22 * *", "at 03:00 on the 21st and the 22nd day of the month"),
    ],
)
def test_an_expression_is_told_in_words(expression: str, said: str) -> None:
    assert words(checked_expression(expression)) == said


def test_a_time_that_the_clock_skips_fires_once_as_soon_as_it_is_over() -> None:
    assert shown("30 2 * * *", "2027-03-27T12:00", 2) == ["28 03:00 CEST", "29 02:30 CEST"]
    assert shown("0,30 2 * * *", f"{SPRING}T00:10", 2) == ["28 03:00 CEST", "29 02:00 CEST"]


def test_a_time_that_comes_twice_fires_the_first_time_only() -> None:
    assert shown("30 2 * * *", "2026-10-24T12:00", 2) == ["25 02:30 CEST", "26 02:30 CET"]
    assert shown("30 2 * * *", f"{AUTUMN}T01:10", 1) == ["26 02:30 CET"]  # asked between the two


def test_an_hourly_job_fires_each_real_hour_on_both_changes() -> None:
    assert shown("0 * * * *", f"{AUTUMN}T23:10".replace("25", "24"), 3) == ["25 02:00 CEST", "25 02:00 CET", "25 03:00 CET"]
    assert shown("0 * * * *", f"{SPRING}T00:00", 2) == ["28 03:00 CEST", "28 04:00 CEST"]


def test_the_latest_firing_is_found_however_long_nobody_was_there() -> None:
    found = latest_firing("30 2 * * *", BERLIN, utc("2020-01-01"), utc(f"{AUTUMN}T12:00"))
    assert found is not None
    assert found.astimezone(UTC) == utc(f"{AUTUMN}T00:30")
    assert latest_firing("30 2 * * *", BERLIN, utc(f"{AUTUMN}T00:30"), utc(f"{AUTUMN}T12:00")) is None


def test_the_machines_zone_is_told_by_tz_or_by_localtime(tmp_path: Path) -> None:
    assert host_zone({"TZ": ":Europe/Berlin"}).key == "Europe/Berlin"
    assert host_zone({}, tmp_path / "missing").key == "UTC"
    assert show_the_same(ZoneInfo("Etc/UTC"), ZoneInfo("UTC"), NOW)
    assert not show_the_same(BERLIN, ZoneInfo("Europe/London"), NOW)
    with pytest.raises(ConfigError, match="TZ='CET-1CEST,M3' is no name of a time zone"):
        host_zone({"TZ": "CET-1CEST,M3"})


# -------------------------------------------------------------------------------------------------------- crontab
AWKWARD = "it's 100% $HOME"


def test_a_crontab_line_hands_every_word_through_the_shell_as_it_is(tmp_path: Path) -> None:
    folder = project(tmp_path / AWKWARD, "[profile.night.run]\nworkers = 1\n")
    settings = load_settings(cwd=folder, profile="night", environ={})
    line = crontab_line(settings, scheduled("5/10 3 * JAN mon-FRI"), HOST, NOW)
    fields, command = line.split(" /", 1)
    assert fields == "5-59/10 3 * 1 1-5"
    assert not re.search(r"(?<!\\)%", command)  # cron would end the command there
    spoken = "/" + command.replace(r"\%", "%")  # what cron gives to /bin/sh
    program, rest = spoken.split(" ", 1)
    assert Path(program).is_file()
    said = subprocess.run(["/bin/sh", "-c", f"printf '%s\\n' {rest}"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["run", "totals", "-q", "--config", str(folder / "config.toml"), "--profile", "night"]


def test_fields_keep_the_star_that_decides_about_days_and_changes_of_the_clock() -> None:
    assert plain_fields("*/15 */2 */3 JUL SUN") == ["*/15", "*/2", "*/3", "7", "0"]
    assert plain_fields("@weekly") == ["0", "0", "*", "*", "0"]
    assert plain_fields("0 3 L * *") is None
    assert plain_fields("0 3 * * MON#2") is None


def test_what_cron_would_start_at_another_time_is_refused_with_a_way_out(tmp_path: Path) -> None:
    settings = load_settings(cwd=project(tmp_path), environ={})
    with pytest.raises(ConfigError) as refused:
        crontab_line(settings, scheduled("0 3 * * *", "Europe/Berlin"), HOST, NOW)
    assert str(refused.value).startswith("totals: its time zone is Europe/Berlin, and cron goes by this machine's, UTC")
    assert "batchrun schedule export --systemd" in str(refused.value)
    with pytest.raises(ConfigError, match="no cron knows the L and # of '0 3 L"):
        crontab_line(settings, scheduled("0 3 L * *"), HOST, NOW)
    assert crontab_line(settings, scheduled("*/5 * * * *", "Europe/Berlin"), HOST, NOW).startswith("*/5 * * * * /")
    assert crontab_line(settings, scheduled("0 3 * * *", "Etc/UTC"), HOST, NOW).startswith("0 3 * * * /")
    with pytest.raises(ConfigError, match="cron goes by this machine's"):  # half an hour off, so not even hourly
        crontab_line(settings, scheduled("0 * * * *", "Asia/Kolkata"), HOST, NOW)


def test_a_path_that_no_line_can_carry_is_refused(tmp_path: Path) -> None:
    for name, said in (("new\nline", "control character"), ("back\\slash", "backslash"), ("x" * 200, "longer than the 998")):
        folder = tmp_path / name
        for _ in range(5 if said.startswith("longer") else 0):
            folder = folder / name
        settings = load_settings(cwd=project(folder), environ={})
        with pytest.raises(ConfigError, match=said):
            crontab_line(settings, scheduled("0 3 * * *"), HOST, NOW)


CONFIG, OTHER = Path("/a/config.toml"), Path("/a/config.toml.old")
BLOCK = f"# BEGIN batchrun {CONFIG}\n0 3 * * * x\n# END batchrun {CONFIG}\n"


@pytest.mark.parametrize(
    "before", [b"", b"MAILTO=me\n\n# mine \xff\t\n1 2 * * * own\n", BLOCK.replace(str(CONFIG), str(OTHER)).encode()]
)
def test_the_block_goes_in_and_out_and_leaves_all_else_byte_for_byte(before: bytes) -> None:
    once = with_block(before, BLOCK, CONFIG)
    assert once == before + BLOCK.encode()
    assert with_block(once + b"9 * * * * later\n", BLOCK, CONFIG) == once + b"9 * * * * later\n"
    changed = with_block(once + b"9 * * * * later\n", BLOCK.replace("0 3", "0 4"), CONFIG)
    assert changed == before + BLOCK.replace("0 3", "0 4").encode() + b"9 * * * * later\n"
    assert without_block(once, CONFIG) == before
    assert without_block(before, CONFIG) is None


def test_half_a_block_is_left_alone() -> None:
    with pytest.raises(ConfigError, match="not one pair; nothing was changed"):
        with_block(BLOCK.partition("# END")[0].encode(), BLOCK, CONFIG)


def test_variables_that_cron_would_not_have_are_named(tmp_path: Path) -> None:
    environ = {"BATCHRUN_RUN_WORKERS": "3", "SECRET": "x", "BATCHRUN_PROFILE": "p"}
    config = '[database]\nurl = "postgresql://a:${SECRET}@h/d"\n[jobs.a]\nn = "${UNSET_ONE}"\n[profile.p.run]\nworkers = 1\n'
    settings = load_settings(cwd=project(tmp_path, config), environ=environ)
    assert missing_variables(settings, environ) == ["BATCHRUN_RUN_WORKERS", "SECRET", "UNSET_ONE"]


# -------------------------------------------------------------------------------------------------------- systemd
CALENDARS = {
    "0 3 * * *": ["*-*-* 03:00:00 Europe/Berlin"],
    "0 3 13 * 5": ["*-*-13 03:00:00 Europe/Berlin", "Fri *-*-* 03:00:00 Europe/Berlin"],
    "0 3 */2 * MON": ["Mon *-*-01/2 03:00:00 Europe/Berlin"],
    "5,7 */6 1-7 JAN,FEB *": ["*-01,02-01..07 00/6:05,07:00 Europe/Berlin"],
    "0 3 LW * *": ["Mon..Fri *-*~01 03:00:00 Europe/Berlin", "Fri *-*~02..03 03:00:00 Europe/Berlin"],
    "0 3 * * 5L,MON#2": ["Mon *-*-08..14 03:00:00 Europe/Berlin", "Fri *-*~01..07 03:00:00 Europe/Berlin"],
    "0 3 * * 0,6": ["Sat,Sun *-*-* 03:00:00 Europe/Berlin"],
    "*/30 * * * *": ["*-*-* *:00,30:00 UTC"],
    "*/15 * * * *": ["*-*-* *:00/15:00 UTC"],
}
_DAY = "(Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
GRAMMAR = re.compile(
    rf"({_DAY}([.,]+{_DAY})* )?"
    r"(\*|\d{4})-[\d*,./]+[-~][\d*,./]+ [\d*,./]+:[\d*,./]+:00"
    r"( [A-Za-z_/]+)?"
)


def is_a_calendar(line: str) -> bool:
    """As systemd says, where it is; by the grammar of what we write, where it is not."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return GRAMMAR.fullmatch(line) is not None
    asked = subprocess.run([program, "calendar", line], capture_output=True, check=False)
    return asked.returncode == 0 and GRAMMAR.fullmatch(line) is not None


@pytest.mark.parametrize("expression", CALENDARS)
def test_an_expression_as_calendars_of_systemd(expression: str) -> None:
    lines = calendar_lines(expression, BERLIN, HOST, NOW)
    assert lines == CALENDARS[expression]
    assert all(is_a_calendar(line) for line in lines)


def test_what_systemd_leaves_out_where_the_clock_changes_is_written_out() -> None:
    skipped = calendar_lines("30 2 * * *", BERLIN, HOST, NOW)
    assert skipped[:3] == ["*-*-* 02:30:00 Europe/Berlin", "2027-03-28 01:00:00 UTC", "2028-03-26 01:00:00 UTC"]
    doubled = calendar_lines("*/15 0-6 * * *", BERLIN, HOST, NOW)
    assert doubled[1:3] == ["2026-10-25 01:00/15:00 UTC", "2027-10-31 01:00/15:00 UTC"]
    assert len(skipped) == len(doubled) == 11  # ten years
    assert is_a_calendar(skipped[1])
    assert calendar_lines("30 2 * * *", None, ZoneInfo("UTC"), NOW) == ["*-*-* 02:30:00"]


def test_units_are_as_systemd_takes_them(tmp_path: Path) -> None:
    folder = project(tmp_path / 'a "b" %h $x', '[schedule]\nmissed = "skip"\n')
    settings = load_settings(cwd=folder, environ={})
    units = unit_files(settings, [scheduled("30 2 13 * 5", "Europe/Berlin")], for_user=False)
    service, timer = units["batchrun-a-b-h-x-totals.service"], units["batchrun-a-b-h-x-totals.timer"]
    escaped = str(folder / "config.toml").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    assert f'run totals -q --config "{escaped}"' in service
    assert "\nType=oneshot\nUser=" in service
    assert "\nSuccessExitStatus=5 75 143\n" in service
    assert "\nTimeoutStopSec=30\n" in service
    assert "\nOnCalendar=*-*-13 02:30:00 Europe/Berlin\nOnCalendar=Fri *-*-* 02:30:00 Europe/Berlin\n" in timer
    assert "\nPersistent=false\n" in timer
    written = write_units(tmp_path / "units", units)
    for unit in written:
        assert all(re.fullmatch(r"#.*|\[\w+\]|[A-Z]\w+=.+|", line) for line in unit.read_text().splitlines())
    if program := shutil.which("systemd-analyze"):
        verified = subprocess.run([program, "verify", *map(str, written)], capture_output=True, text=True, check=False)
        assert (verified.returncode, verified.stderr) == (0, "")


def test_units_of_another_project_are_not_overwritten(tmp_path: Path) -> None:
    first, second = (
        unit_files(load_settings(cwd=project(tmp_path / parent / "shop"), environ={}), [scheduled("0 3 * * *")], for_user=True)
        for parent in ("one", "two")
    )
    assert all("User=" not in text for text in first.values())
    write_units(tmp_path / "units", first)
    write_units(tmp_path / "units", first)
    with pytest.raises(ConfigError, match="is there and is not this project's"):
        write_units(tmp_path / "units", second)


# -------------------------------------------------------------------------------------------------------- the loop
def agenda(expression: str, fired: str, timezone: str = "Europe/Berlin") -> Agenda:
    return Agenda([scheduled(expression, timezone)], {"totals": utc(fired).timestamp()})


def test_many_firings_that_were_missed_are_one() -> None:
    (due,) = agenda("* * * * *", "2026-10-01T00:00").due(utc("2026-10-20T10:00:30").timestamp())
    assert due.firing.astimezone(UTC) == utc("2026-10-20T10:00")
    assert not due.was_missed  # the newest is on time, and stands for all
    (due,) = agenda("0 3 * * *", "2026-10-01T01:00").due(utc("2026-10-20T10:00").timestamp())
    assert due.firing.astimezone(UTC) == utc("2026-10-20T01:00")
    assert due.was_missed


def test_a_firing_is_due_once_through_both_changes_of_the_clock() -> None:
    for day, first in ((SPRING, f"{SPRING}T01:00"), (AUTUMN, f"{AUTUMN}T00:30")):
        known = agenda("30 2 * * *", f"{day}T00:00".replace("28T", "27T").replace("25T", "24T") + ":30")
        known.fired["totals"] = utc(first).timestamp() - 7200
        found = []
        for minute in range(-60, 300, 5):
            for due in known.due(now := utc(first).timestamp() + 60 * minute):
                known.fired["totals"] = due.firing.timestamp()
                found.append(now)
        assert found == [utc(first).timestamp()]


def test_a_clock_that_is_put_back_fires_nothing_twice_and_is_seen_when_it_is_far() -> None:
    known = agenda("*/10 * * * *", "2026-10-20T10:00")
    assert known.due(utc("2026-10-20T09:35").timestamp()) == []
    assert known.ahead(utc("2026-10-20T09:35").timestamp()) == []
    assert [one.job for one in known.ahead(utc("2026-10-20T08:00").timestamp())] == ["totals"]
