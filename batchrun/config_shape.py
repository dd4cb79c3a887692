"""The shape of config.toml as pydantic models, and pydantic's errors as sentences that begin with a place."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from batchrun.durations import seconds
from batchrun.options import SETTING_NAMES, checked_option, checked_setting
from batchrun.toml_places import KeyPath

Check = Callable[[object], object]

RUN_OPTIONS = (
    "workers",
    "threads",
    "transaction",
    "retries",
    "retry_on",
    "timeout",
    "kill_after",
    "grace",
    "max_failures",
    "read_only",
    "max_items_per_worker",
    "max_worker_growth",
)
"""The options of a run that config.toml may set; the others describe the code (``batched``) or one call (``limit``)."""

NULLABLE = frozenset(
    {"workers", "timeout", "max_failures", "keep_days", "schedule", "timezone", "max_items_per_worker", "max_worker_growth"}
    | {"ping_url", "on_failure", "textfile"}
)
"""Keys that take the text "none", since TOML has no null: what a lower layer set is undone."""

WHOLE_NUMBERS = frozenset({"workers", "threads", "retries", "keep_days", "max_items_per_worker", "max_worker_growth"})
FLAGS = frozenset({"read_only", "enabled"})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("this must be a text in quotes")
    if not value.strip():
        raise ValueError("this is empty: give a value, or leave it out")
    return value.strip()


def database_url(value: object) -> str:
    """Check the outside of a database URL. Raises ValueError that never shows it, as it may hold a password."""
    text = _text(value)
    if not re.match(r"[A-Za-z][\w+]*://", text):
        raise ValueError("this is no database URL; write postgresql://user@host:5432/name or sqlite:///file.db")
    return text


def _ping_url(value: object) -> str:
    text = _text(value)
    if not text.startswith(("https://", "http://")):
        raise ValueError("this is no web address; write one that begins with https://")
    return text


def _factory(value: object) -> str:
    module, _, name = _text(value).partition(":")
    if not name.isidentifier() or not _is_dotted(module):
        raise ValueError(f"{value!r} names no function; write 'package.module:function', a function that returns an Engine")
    return f"{module}:{name}"


def _pool(value: object) -> str:
    if value not in ("queue", "null"):
        raise ValueError(f"{value!r} is not one of 'queue' (connections are held), 'null' (one for each transaction)")
    return str(value)


def _connect_timeout(value: object) -> float:
    found = seconds(value)
    if not 0 < found <= 3600:
        raise ValueError(f"{value!r} is not above 0 and at most an hour; write seconds, '10s' or '1m'")
    return found


def _keep_days(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 36500:
        raise ValueError(f"{value!r} is not a whole number of days from 1 to 36,500, such as 90; 'none' keeps everything")
    return value


def _command(value: object) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value) or not value[0].strip():
        raise ValueError(
            "this must be a list of arguments, such as ['mail', '-s', 'batchrun', 'ops@example.org']; no shell reads it"
        )
    return value


def _log_format(value: object) -> str:
    if value not in ("text", "json"):
        raise ValueError(f"{value!r} is not one of 'text' (lines for people), 'json' (one object a line)")
    return str(value)


def _textfile(value: object) -> str:
    text = _text(value)
    if set(re.findall(r"[{}][^{}]*}?", text)) - {"{job}"}:
        raise ValueError(f"{value!r} has braces that are not {{job}}, which stands for the job's name")
    if not text.endswith(".prom"):
        raise ValueError(f"{value!r} does not end in .prom, and node_exporter reads no other files")
    return text


def _class_names(value: object) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_dotted(name) for name in names):
        raise ValueError(f"{value!r} is not a list of class names, such as ['ConnectionError', 'requests.exceptions.Timeout']")
    return names


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _none_or(name: str, check: Check) -> Check:
    return lambda value: None if name in NULLABLE and value == "none" else check(value)


def _option(name: str) -> Check:
    return _none_or(name, _class_names if name == "retry_on" else lambda value: checked_option(name, value))


def _setting(name: str) -> Check:
    return _none_or(name, lambda value: checked_setting(name, value))


class _Table(BaseModel):
    """A table whose keys are checked by our own functions, so that a message reads the same wherever a value came from."""

    model_config = ConfigDict(extra="forbid")
    checks: ClassVar[Mapping[str, Check]] = {}

    @field_validator("*", mode="plain")
    @classmethod
    def check(cls, value: object, info: ValidationInfo) -> object:
        return cls.checks[info.field_name or ""](value)


class DatabaseTable(_Table):
    """``[database]``: at most one of url, url_file and factory."""

    url: Any = None
    url_file: Any = None
    factory: Any = None
    pool: Any = None
    connect_timeout: Any = None
    checks: ClassVar[Mapping[str, Check]] = {
        "url": database_url,
        "url_file": _text,
        "factory": _factory,
        "pool": _pool,
        "connect_timeout": _connect_timeout,
    }


class LedgerTable(_Table):
    """``[ledger]``: at most one of url and url_file."""

    url: Any = None
    url_file: Any = None
    schema_: Any = None
    keep_days: Any = None
    model_config = ConfigDict(extra="forbid", alias_generator=lambda name: name.rstrip("_"))
    checks: ClassVar[Mapping[str, Check]] = {
        "url": database_url,
        "url_file": _text,
        "schema_": _text,
        "keep_days": _none_or("keep_days", _keep_days),
    }


class RunTable(_Table):
    """``[run]``: the options of every run."""

    workers: Any = None
    threads: Any = None
    transaction: Any = None
    retries: Any = None
    retry_on: Any = None
    timeout: Any = None
    kill_after: Any = None
    grace: Any = None
    max_failures: Any = None
    read_only: Any = None
    max_items_per_worker: Any = None
    max_worker_growth: Any = None
    on_unfinished: Any = None
    checks: ClassVar[Mapping[str, Check]] = {
        **{name: _option(name) for name in RUN_OPTIONS},
        **{name: _setting(name) for name in SETTING_NAMES},
    }


class JobTable(RunTable):
    """``[jobs.NAME]``: the keys of ``[run]``, when it runs, and any parameter of the job, which is checked once it is known."""

    model_config = ConfigDict(extra="allow")
    schedule: Any = None
    timezone: Any = None
    if_running: Any = None
    enabled: Any = None


class NotifyTable(_Table):
    """``[notify]``: who is told how a run ended."""

    ping_url: Any = None
    on_failure: Any = None
    checks: ClassVar[Mapping[str, Check]] = {
        "ping_url": _none_or("ping_url", _ping_url),
        "on_failure": _none_or("on_failure", _command),
    }


class LogTable(_Table):
    """``[log]``: how what happens is written on stderr."""

    format: Any = None
    checks: ClassVar[Mapping[str, Check]] = {"format": _log_format}


class MetricsTable(_Table):
    """``[metrics]``: figures of the last runs, for a monitor."""

    textfile: Any = None
    checks: ClassVar[Mapping[str, Check]] = {"textfile": _none_or("textfile", _textfile)}


def _missed(value: object) -> str:
    if value not in ("run", "skip"):
        raise ValueError(f"{value!r} is not one of 'run' (once, as soon as it can be), 'skip' (wait for the next firing)")
    return str(value)


class ScheduleTable(_Table):
    """``[schedule]``: what becomes of firings at which nobody was there."""

    missed: Any = None
    checks: ClassVar[Mapping[str, Check]] = {"missed": _missed}


class Tables(BaseModel):
    """What a profile may hold."""

    model_config = ConfigDict(extra="forbid")
    database: DatabaseTable | None = None
    ledger: LedgerTable | None = None
    run: RunTable | None = None
    jobs: dict[str, JobTable] | None = None
    notify: NotifyTable | None = None
    schedule: ScheduleTable | None = None
    log: LogTable | None = None
    metrics: MetricsTable | None = None


class Document(Tables):
    """All of config.toml."""

    profile: dict[str, Tables] | None = None


TABLES: Mapping[str, type[_Table]] = {
    "database": DatabaseTable,
    "ledger": LedgerTable,
    "run": RunTable,
    "notify": NotifyTable,
    "schedule": ScheduleTable,
    "log": LogTable,
    "metrics": MetricsTable,
}


def keys_of(table: type[BaseModel]) -> list[str]:
    """The keys a table may have, as they are written."""
    return [field.alias or name for name, field in table.model_fields.items()]


def check_shape(raw: Mapping[str, Any], label: Callable[[KeyPath], str]) -> tuple[dict[str, Any], list[str]]:
    """Return the tables with every value as it is used, and one sentence for each error.

    label: makes what a sentence begins with from a key path, such as "config.toml:3:1: run.workers".
    """
    try:
        return _plain(Document.model_validate(raw)), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        return {}, [f"{label(one['loc'])}: {_sentence(one)}" for one in found]


def _plain(value: Any) -> Any:
    """The keys that were given, without the models around them."""
    if isinstance(value, BaseModel):
        extra = value.model_extra or {}  # not by getattr: a parameter may be named like a method of the model
        own = sorted(value.model_fields_set - set(extra))
        return {_written(value, name): _plain(getattr(value, name)) for name in own} | extra
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _written(table: BaseModel, name: str) -> str:
    field = type(table).model_fields.get(name)
    return (field.alias if field else None) or name


def _sentence(error: ErrorDetails) -> str:
    path = error["loc"]
    if error["type"] == "extra_forbidden":
        return f"there is no such key{suggestion(path)}"
    if error["type"] in ("model_type", "dict_type"):
        return f"this must be a table: write [{'.'.join(map(str, path))}] on a line of its own, its keys below"
    return str(error.get("ctx", {}).get("error", error["msg"]))


def suggestion(path: KeyPath) -> str:
    """``; did you mean 'workers'?`` for an unknown key: a near one, the table it belongs in, or all there are."""
    if path[:1] == ("profile",):
        path = path[2:]
    name = str(path[-1])
    known = _siblings(path)
    near = difflib.get_close_matches(name.lower(), known, 1, 0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    homes = [f"[{table}]" for table, model in TABLES.items() if name in keys_of(model)]
    homes += ["[jobs.NAME]"] if name in SETTING_NAMES and not homes else []
    if homes:
        return f"; it belongs in {homes[0]}"
    return f"; there are {', '.join(known)}"


def _siblings(path: KeyPath) -> list[str]:
    if len(path) == 1:
        return keys_of(Document)
    return keys_of(TABLES[str(path[0])]) if path[0] in TABLES else keys_of(JobTable)


def read_text(key: str, text: str) -> object:
    """Return the value a text means for a key, for values that can only be text: variables.

    Whole numbers, true and false, lists (``retry_on`` by commas, ``on_failure`` as JSON or as a shell would split
    it). What does not fit is returned as it is, so that the check of the key says what is wrong.
    """
    text = text.strip()
    if key in WHOLE_NUMBERS and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if key in FLAGS and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if key == "retry_on":
        return [name.strip() for name in text.split(",") if name.strip()]
    if key == "on_failure":
        return _arguments(text)
    return text


def _arguments(text: str) -> object:
    try:
        return json.loads(text) if text.startswith("[") else shlex.split(text)
    except ValueError:
        return text
