"""The options of a run, once: the API, the command line and config.toml all fill this one dataclass."""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from batchrun.durations import seconds
from batchrun.errors import ConfigError

MAX_WORKERS = 1024
TRANSACTIONS = ("item", "chunk", "none")
START_METHODS = ("forkserver", "spawn", "fork")
IF_RUNNING = ("skip", "wait", "fail")
ON_UNFINISHED = ("new", "resume")


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """When a run halts: more than ``count`` items, or more than ``percent`` of those settled, from the 100th on."""

    count: int | None = None
    percent: float | None = None

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent is not None else str(self.count)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is carried out. Durations are seconds.

    workers: processes; None or "auto" = the cores this process may use, or as many as there are free connections;
        0 = inline, in this very process, for a debugger.
    threads: chunks at once in each worker, for work that waits; 1, because most work is bound by Python.
    transaction: "item" = one transaction an item; "chunk" = one for all the items of a chunk, several times
        faster; "none" = the task gets no session.
    batched: the task takes the list of a chunk's items.
    read_only: the task only reads: AUTOCOMMIT, writes refused, one mark a chunk.
    retries: further attempts after the first for errors that may pass; 3 outlives a deadlock or a restart.
    retry_on: exception classes that may pass, beside those of the database.
    timeout: how long one attempt may take; None = no limit, because PostgreSQL's own limit is off as well.
    kill_after: how long after ``timeout`` the worker is killed if its task did not heed it.
    grace: how long items may run on after an interruption.
    max_failures: halt beyond this; None = never.
    start_method: None = forkserver where there is one, else spawn; "fork" on request.
    limit: at most this many items are planned; None = all.
    max_items_per_worker: a worker that has had so many is replaced by a new one; None = never. For code that leaks
        something else than memory.
    max_worker_growth: bytes of resident memory over the worker's own baseline; one that has grown more is replaced
        when its running chunk ends. None = never, because most growth ends by itself.
    idempotent: with transaction="none", an item that was cut off may run again instead of becoming unknown.
    """

    workers: int | Literal["auto"] | None = None
    threads: int = 1
    transaction: str = "item"
    batched: bool = False
    read_only: bool = False
    retries: int = 3
    retry_on: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    kill_after: float = 1.0
    grace: float = 10.0
    max_failures: FailureLimit | None = None
    start_method: str | None = None
    limit: int | None = None
    idempotent: bool = False
    max_items_per_worker: int | None = None
    max_worker_growth: int | None = None


OPTION_NAMES = tuple(f.name for f in fields(RunOptions))


def with_options(base: RunOptions, given: Mapping[str, Any], *, where: str = "") -> RunOptions:
    """Return ``base`` with the given values checked and put in.

    where: what precedes the option's name in a message, such as "--" or "config.toml:3:1: ".
    Raises ConfigError that names the option, the value, the allowed range and examples.
    """
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _CHECKS:
            near = difflib.get_close_matches(name, _CHECKS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; options are {', '.join(_CHECKS)}"
            raise ConfigError(f"{where}{name}: there is no such option{hint}")
        try:
            checked[name] = checked_option(name, value)
        except ValueError as error:
            raise ConfigError(f"{where}{name}: {error}") from None
    made = replace(base, **checked)
    _check_together(made, where)
    return made


def checked_option(name: str, value: object) -> Any:
    """Return one option's value as RunOptions keeps it. Raises ValueError with the allowed range and examples."""
    return _CHECKS[name](value)


def checked_setting(name: str, value: object) -> Any:
    """The same for one of SETTING_NAMES, what a job has beside the options of its runs."""
    return _SETTING_CHECKS[name](value)


def _check_together(options: RunOptions, where: str) -> None:
    if options.batched and options.transaction == "none":
        raise ConfigError(f"{where}batched: needs a session; it cannot be combined with transaction='none'")
    if options.read_only and options.transaction == "none":
        raise ConfigError(f"{where}read_only: needs a session; it cannot be combined with transaction='none'")


def _whole(low: int, high: int, example: str) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{value!r} is not a whole number from {low} to {high:,}, such as {example}")
        return value

    return check


def _workers(value: object) -> int | str:
    return value if isinstance(value, str) and value == "auto" else _count_of_workers(value)


def _or_none(check: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else check(value)


def _duration(low_open: bool) -> Callable[[object], float]:
    def check(value: object) -> float:
        found = seconds(value)
        if found < 0 or (low_open and found == 0):
            raise ValueError(f"{value!r} is not {'above' if low_open else 'at least'} 0; write seconds, '30s', '5m' or '2h'")
        return found

    return check


def _one_of(*allowed: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
        return str(value)

    return check


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def _classes(value: object) -> tuple[type[BaseException], ...]:
    single = (value,) if isinstance(value, type) else value
    if not isinstance(single, tuple | list) or not all(isinstance(c, type) and issubclass(c, BaseException) for c in single):
        raise ValueError(f"{value!r} is not a tuple of exception classes, such as (ConnectionError,)")
    return tuple(single)


def failure_limit(value: object) -> FailureLimit:
    """Read ``5``, ``"5"`` or ``"2%"``. Raises ValueError for anything else."""
    if isinstance(value, FailureLimit):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return FailureLimit(count=value)
    text = value.strip() if isinstance(value, str) else ""
    if text.isascii() and text.isdigit():
        return FailureLimit(count=int(text))
    try:
        percent = float(text[:-1]) if text.endswith("%") else -1.0
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise ValueError(f"{value!r} is neither a number of items nor a percentage, such as 10 or '2%'")
    return FailureLimit(percent=percent)


_count_of_workers = _whole(0, MAX_WORKERS, "4 (0 runs inline), or 'auto'")
_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?b|b|)\s*", re.ASCII | re.IGNORECASE)


def memory_size(value: object) -> int:
    """Read bytes, ``"200MB"`` or ``"1.5GiB"``. Raises ValueError for anything else."""
    found = 0
    if isinstance(value, int) and not isinstance(value, bool):
        found = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        found = int(float(match[1]) * _SIZE_UNITS[match[2].upper()])
    if found < 1:
        raise ValueError(f"{value!r} is no size of memory; write bytes or a text such as 200000000, '200MB' or '1GiB'")
    return found


_CHECKS: dict[str, Callable[[object], Any]] = {
    "workers": _or_none(_workers),
    "threads": _whole(1, 1000, "8"),
    "transaction": _one_of(*TRANSACTIONS),
    "batched": _flag,
    "read_only": _flag,
    "retries": _whole(0, 1000, "3"),
    "retry_on": _classes,
    "timeout": _or_none(_duration(low_open=True)),
    "kill_after": _duration(low_open=False),
    "grace": _duration(low_open=False),
    "max_failures": _or_none(failure_limit),
    "start_method": _or_none(_one_of(*START_METHODS)),
    "limit": _or_none(_whole(0, 10**12, "1000")),
    "idempotent": _flag,
    "max_items_per_worker": _or_none(_whole(1, 10**12, "10000")),
    "max_worker_growth": _or_none(memory_size),
}


def _zone(value: object) -> str:
    try:
        if isinstance(value, str):
            return zoneinfo.ZoneInfo(value).key
    except (KeyError, ValueError, OSError):  # not found; an absolute path; a directory of the zone database
        pass
    raise ValueError(f"{value!r} is no time zone; write a name such as 'Europe/Berlin' or 'UTC'")


def _expression(value: object) -> str:
    from batchrun.schedule.expressions import checked_expression  # few jobs have one, and cronsim is for them

    return checked_expression(value)


_SETTING_CHECKS: dict[str, Callable[[object], Any]] = {
    "schedule": _or_none(_expression),
    "timezone": _or_none(_zone),
    "if_running": _one_of(*IF_RUNNING),
    "enabled": _flag,
    "on_unfinished": _one_of(*ON_UNFINISHED),
}
SETTING_NAMES = tuple(_SETTING_CHECKS)
