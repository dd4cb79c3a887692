"""config.toml, profiles, the environment and the command line, as one Settings.

Order, the later wins: built-in < decorator < config.toml ([run], then [jobs.NAME]) < profile < environment <
command line. Every value knows where it came from.
"""

from __future__ import annotations

import builtins
import difflib
import importlib
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from batchrun.config_layers import (
    Layer,
    Unset,
    environment_layer,
    file_layers,
    find_file,
    option_name,
    override_layer,
    raise_errors,
    read_regular,
    read_source,
)
from batchrun.config_shape import RUN_OPTIONS, TABLES, database_url, keys_of
from batchrun.errors import ConfigError
from batchrun.jobs import Job
from batchrun.masking import MASK, mask_url, names_secret, path_secrets, url_secrets
from batchrun.options import SETTING_NAMES, FailureLimit, RunOptions, checked_option, with_options
from batchrun.toml_places import KeyPath

BUILT_IN = "built-in"
_ONE_OF = {"database": ("url", "url_file", "factory"), "ledger": ("url", "url_file")}
_DEFAULTS: Mapping[KeyPath, object] = {
    ("database", "pool"): "queue",
    ("database", "connect_timeout"): 10.0,
    ("run", "on_unfinished"): "new",
    ("schedule", "missed"): "run",
    ("log", "format"): "text",
}
_JOB_DEFAULTS = {"schedule": None, "timezone": None, "if_running": "fail", "enabled": True, "on_unfinished": "new"}


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """``[database]``.

    url: a SQLite file in it is absolute; empty when ``factory`` is set. pool: "queue" = ``threads`` connections
    held, "null" = one for each transaction. connect_timeout: seconds. factory: "module:function" that makes an Engine.
    """

    url: str = field(repr=False)
    pool: str = "queue"
    connect_timeout: float = 10.0
    factory: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """``[ledger]``. url: None = in the database itself. schema: None = the default one. keep_days: None = for ever."""

    url: str | None = field(default=None, repr=False)
    schema: str | None = None
    keep_days: int | None = None


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """``[notify]``. ping_url: asked for after each run. on_failure: a command as a list of arguments, run without a shell."""

    ping_url: str | None = field(default=None, repr=False)
    on_failure: list[str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class JobSettings:
    """``[jobs.NAME]``. In ``Settings.jobs`` only what was set, else None; ``job_settings`` fills in the defaults.

    options: names of RunOptions. parameters: as TOML has them, not yet checked against the job.
    timezone: None = the machine's own. if_running: "skip", "wait", "fail". on_unfinished: "new", "resume".
    """

    options: Mapping[str, object] = field(default_factory=dict)
    parameters: Mapping[str, object] = field(default_factory=dict, repr=False)
    schedule: str | None = None
    timezone: str | None = None
    if_running: str | None = None
    enabled: bool | None = None
    on_unfinished: str | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """One line of ``batchrun config``. value: plain data, with ``***`` for what is secret."""

    name: str
    value: object
    origin: str
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, merged.

    folder: the project's: config.toml's, or the working directory where there is none. file: None = there is no
    config.toml; searched: where it was looked for. run: the names of RunOptions, and on_unfinished, that were set
    anywhere; ``effective_options`` merges them with a job's. secrets: passwords, for ``masking.Redactor``.
    """

    folder: Path
    file: Path | None
    profile: str | None
    database: DatabaseSettings
    ledger: LedgerSettings
    run: Mapping[str, object]
    jobs: Mapping[str, JobSettings]
    notify: NotifySettings
    searched: tuple[Path, ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    layers: tuple[Layer, ...] = field(default=(), repr=False)

    def need_file(self) -> Path:
        """Return config.toml. Raises ConfigError with the paths searched where there is none."""
        if self.file is None:
            tried = "\n".join(f"  {path}" for path in self.searched)
            raise ConfigError(
                f"There is no config.toml here or in a folder above. Make a project with: batchrun init\nSearched:\n{tried}"
            )
        return self.file

    def values(self) -> list[Value]:
        """Every value with its origin, built-in ones too, secrets masked."""
        merged = _merged(self.layers)
        names = [(table, key) for table, model in TABLES.items() for key in keys_of(model)]
        shown = [_value(path, merged.get(path), self) for path in names if path in merged or path[1] != "url_file"]
        jobs = [_value(path, found, self) for path, found in sorted(merged.items(), key=str) if path[0] == "jobs"]
        return shown + jobs


def load_settings(
    *,
    config: str | Path | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Find config.toml, read it and everything that goes over it.

    config, profile: as given on the command line, else BATCHRUN_CONFIG and BATCHRUN_PROFILE. overrides: values of the
    command line by dotted name, such as {"database.url": ...}. Raises ConfigError with file, line and column.
    """
    here = _working_directory(cwd)
    named = config if config is not None else environ.get("BATCHRUN_CONFIG") or None
    file, searched = find_file(named, here, "--config" if config is not None else "BATCHRUN_CONFIG")
    chosen = profile if profile is not None else environ.get("BATCHRUN_PROFILE") or None
    chosen_by = "--profile" if profile is not None else "BATCHRUN_PROFILE"
    layers = [environment_layer(environ), override_layer(overrides or {})]
    if file is not None:
        layers = file_layers(read_source(file, here), chosen, chosen_by, environ) + layers
    elif chosen is not None:
        raise ConfigError(
            f"{chosen_by}: there is no profile {chosen!r}, because there is no config.toml; batchrun init makes one"
        )
    return _settings(file, searched, file.parent if file else here, chosen, tuple(layers))


def _working_directory(cwd: Path | None) -> Path:
    try:
        return Path(os.path.abspath(cwd or Path.cwd()))  # noqa: PTH100 - Path.resolve() would follow links
    except FileNotFoundError:
        raise ConfigError("The working directory no longer exists; change to one that does.") from None


Found = tuple[Any, Layer]
Merged = dict[KeyPath, Found]


def _merged(layers: Sequence[Layer]) -> Merged:
    """The last layer that sets a key wins; one of url, url_file and factory puts the others out."""
    made: Merged = {}
    for layer in layers:
        for path, value in layer.leaves():
            for rival in _rivals(path):
                if made.get(rival, (None, None))[1] is layer:
                    raise ConfigError(
                        f"{layer.label(path)}: {rival[1]} is given too ({layer.origin(rival)}); keep one of the two"
                    )
                made.pop(rival, None)
            made[path] = (value, layer)
    return made


def _rivals(path: KeyPath) -> list[KeyPath]:
    group = _ONE_OF.get(str(path[0]), ())
    return [(path[0], key) for key in group if path[1] in group and key != path[1]]


def _settings(
    file: Path | None, searched: tuple[Path, ...], folder: Path, profile: str | None, layers: tuple[Layer, ...]
) -> Settings:
    merged = _merged(layers)
    raise_errors([value.message for path, (value, _) in merged.items() if path[0] != "jobs" and isinstance(value, Unset)])

    def get(table: str, key: str) -> Any:
        path = (table, key)
        return merged[path][0] if path in merged else _DEFAULTS.get(path)

    factory = get("database", "factory")
    url = _url("database", merged, folder)
    ledger_url = _url("ledger", merged, folder)
    database = DatabaseSettings(
        "" if factory else url or f"sqlite:///{folder / 'batchrun.db'}",
        get("database", "pool"),
        get("database", "connect_timeout"),
        factory,
    )
    return Settings(
        folder=folder,
        file=file,
        profile=profile,
        database=database,
        ledger=LedgerSettings(ledger_url, get("ledger", "schema"), get("ledger", "keep_days")),
        run={str(path[1]): value for path, (value, _) in merged.items() if path[0] == "run"},
        jobs={name: _job(merged, name) for name in sorted({str(path[1]) for path in merged if path[0] == "jobs"})},
        notify=NotifySettings(get("notify", "ping_url"), get("notify", "on_failure")),
        searched=searched,
        secrets=tuple(
            dict.fromkeys([one for text in (url, ledger_url, get("notify", "ping_url")) for one in url_secrets(text or "")])
        )
        + path_secrets(get("notify", "ping_url") or ""),
        layers=layers,
    )


def _job(merged: Merged, name: str) -> JobSettings:
    keys = {
        str(path[2]): value for path, (value, _) in merged.items() if path[:2] == ("jobs", name) and not isinstance(value, Unset)
    }
    return JobSettings(
        options={key: value for key, value in keys.items() if key in RUN_OPTIONS},
        parameters={key: value for key, value in keys.items() if key not in RUN_OPTIONS and key not in SETTING_NAMES},
        **{key: value for key, value in keys.items() if key in SETTING_NAMES},
    )


# ------------------------------------------------------------------------------------------------- database URLs
def _url(table: str, merged: Merged, folder: Path) -> str | None:
    """The URL of a table, read from its url_file if need be, with an absolute SQLite file."""
    if (table, "url_file") in merged:
        path, layer = (table, "url_file"), merged[table, "url_file"][1]
        text = read_regular(folder / Path(merged[path][0]).expanduser(), layer.label(path))
    elif (table, "url") in merged:
        path = (table, "url")
        text, layer = merged[path]
    else:
        return None
    try:
        return absolute_sqlite(database_url(text), folder)
    except ValueError as error:
        raise ConfigError(f"{layer.label(path)}: {error}") from None


def absolute_sqlite(url: str, folder: Path) -> str:
    """Make the file of a SQLite URL absolute, relative to ``folder``; other URLs stay as they are.

    Raises ValueError for a database in memory.
    """
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0].lower() != "sqlite":
        return url
    name, mark, query = rest.removeprefix("/").partition("?")
    if name in ("", ":memory:", "file::memory:") or "mode=memory" in query:
        raise ValueError(
            "a SQLite database in memory lives inside one connection, so each worker would see an empty one of its own; "
            "use a file, such as sqlite:///work.db"
        )
    if name.startswith("file:"):
        return url
    return f"{scheme}:///{folder / Path(name).expanduser()}{mark}{query}"


# -------------------------------------------------------------------------------------------- options of one run
def effective_options(settings: Settings, job: Job | None = None, cli: Mapping[str, object] | None = None) -> RunOptions:
    """Return the options of one run: built-in, decorator, config.toml, profile, environment, command line, the later wins.

    cli: options of the command line that were given, by their names in RunOptions. Raises ConfigError.
    """
    chosen = {name: (value, label) for name, value, _, label in _option_steps(settings, job, cli or {})}
    made = {}
    for name, (value, label) in chosen.items():
        if isinstance(value, Unset):
            raise ConfigError(value.message)
        made[name] = _classes(value, label) if name == "retry_on" else value
    return with_options(RunOptions(), made)


def option_origins(settings: Settings, job: Job | None = None, cli: Mapping[str, object] | None = None) -> dict[str, str]:
    """Where each option of ``effective_options`` came from; those that are missing are built in."""
    return {name: origin for name, _, origin, _ in _option_steps(settings, job, cli or {})}


def _option_steps(settings: Settings, job: Job | None, cli: Mapping[str, object]) -> Iterator[tuple[str, Any, str, str]]:
    """Yield name, value, origin and label of every option that is set, from the weakest to the strongest."""
    if job is not None:
        for name, value in job.options.items():
            yield name, value, f"@job {job.name}", f"@job {job.name}: {name}"
    for layer in settings.layers:
        leaves = layer.leaves()
        wanted: list[KeyPath] = [("run",)] + ([("jobs", job.name)] if job is not None else [])
        for table in wanted:
            for path, value in leaves:
                if path[:-1] == table and path[-1] in RUN_OPTIONS:
                    yield str(path[-1]), value, layer.origin(path), layer.label(path)
    for name, value in cli.items():
        label = option_name(("run", name))
        try:
            yield name, checked_option(name, value), f"command line {label}", label
        except ValueError as error:
            raise ConfigError(f"{label}: {error}") from None


def _classes(value: Sequence[Any], label: str) -> tuple[type[BaseException], ...]:
    return tuple(_class(one, label) if isinstance(one, str) else one for one in value)


def _class(name: str, label: str) -> type[BaseException]:
    """Import an exception class by its dotted name; without a dot it is one of Python's own."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module) if module else builtins, attribute)
    except AttributeError:
        found = None
    except Exception as error:
        raise ConfigError(f"{label}: the module of {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, type) or not issubclass(found, BaseException):
        kind = "names no exception class" if found is not None else "does not exist"
        raise ConfigError(f"{label}: {name!r} {kind}; write it as it is imported, such as 'requests.exceptions.Timeout'")
    return found


def setting(settings: Settings, table: str, key: str) -> Any:
    """One value of a table of which nobody needs the whole, such as ("log", "format"); None where there is none."""
    found = _merged(settings.layers).get((table, key))
    return _DEFAULTS.get((table, key)) if found is None else found[0]


def job_settings(settings: Settings, job: Job) -> JobSettings:
    """Return when and how a job runs: decorator, [run] (on_unfinished), [jobs.NAME], profile ..., with defaults filled in."""
    made: dict[str, Any] = {**_JOB_DEFAULTS, **job.settings}
    for layer in settings.layers:
        for table in (("run",), ("jobs", job.name)):
            made |= {str(path[-1]): value for path, value in layer.leaves() if path[:-1] == table and path[-1] in _JOB_DEFAULTS}
    for value in made.values():
        if isinstance(value, Unset):
            raise ConfigError(value.message)
    own = settings.jobs.get(job.name, JobSettings())
    return JobSettings(own.options, own.parameters, **{name: made[name] for name in _JOB_DEFAULTS})


def job_parameters(settings: Settings, job: Job, cli: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the parameters given for a job, those of the command line over those of config.toml, not yet checked.

    Raises ConfigError where one needs an environment variable that is not set.
    """
    given: dict[str, object] = {}
    for path, (value, _) in _merged(settings.layers).items():
        if path[:2] == ("jobs", job.name) and path[2] not in RUN_OPTIONS and path[2] not in SETTING_NAMES:
            given[str(path[2])] = value
    given |= cli or {}
    raise_errors([value.message for value in given.values() if isinstance(value, Unset)])
    return given


def parameter_places(settings: Settings, job: Job) -> dict[str, str]:
    """Where config.toml gives parameters of a job: name -> "config.toml:12:1: jobs.NAME.name", for messages."""
    merged = _merged(settings.layers)
    return {str(path[2]): layer.label(path) for path, (_, layer) in merged.items() if path[:2] == ("jobs", job.name)}


def unknown_jobs(settings: Settings, names: Sequence[str]) -> list[str]:
    """Return a sentence for every [jobs.NAME] of which there is no job. names: those of all jobs."""
    found: dict[str, KeyPath] = {}
    sentences = []
    for layer in settings.layers:
        found |= {str(path[1]): path[:2] for path, _ in layer.leaves() if path[0] == "jobs"}
        for name in [name for name in found if name not in names]:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            sentences.append(f"{layer.label(found.pop(name))}: there is no job {name}{hint}")
    return sentences


# ---------------------------------------------------------------------------------------------- showing, warning
def _value(path: KeyPath, found: Found | None, settings: Settings) -> Value:
    name = ".".join(map(str, path))
    if found is None:
        return Value(name, _default(path, settings), BUILT_IN)
    value, layer = found
    filled = layer.written.get(path)
    if isinstance(value, Unset):
        return Value(name, value.written, f"{layer.origin(path)}, not set")
    if path[-1] == "url" and path[0] in _ONE_OF:
        return Value(
            name, mask_url(_resolved(path, settings)), layer.origin(path), bool(url_secrets(value)) or filled is not None
        )
    if path[-1] == "ping_url":
        return Value(name, _mask_path(value), layer.origin(path), True)
    if path[0] == "jobs" and names_secret(str(path[-1])):
        return Value(name, MASK, layer.origin(path), True)
    shown = filled.text if filled is not None and not isinstance(value, bool | int | float) else value
    return Value(name, _plain(shown), layer.origin(path), filled is not None)


def _default(path: KeyPath, settings: Settings) -> object:
    if path == ("database", "url"):
        return settings.database.url and mask_url(settings.database.url)
    if path[0] == "run" and path not in _DEFAULTS:
        return _plain(getattr(RunOptions(), str(path[1])))
    return _DEFAULTS.get(path)


def _resolved(path: KeyPath, settings: Settings) -> str:
    return (settings.database.url if path[0] == "database" else settings.ledger.url) or ""


def _plain(value: object) -> object:
    if isinstance(value, FailureLimit):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _mask_path(url: str) -> str:
    """A ping URL is its own password: whoever knows its path can report success."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}/{MASK}"


def warnings(settings: Settings) -> list[str]:
    """Return what is no error but should be known: a file with a password in it that others can read, once for each file."""
    found = []
    labels = _secret_labels(settings)
    if labels and settings.file is not None and _others_can_read(settings.file):
        found.append(
            f"{', '.join(labels)}: this is a secret, and others on this machine can read the file: "
            f"chmod 600 {shlex.quote(str(settings.file))}, or take it from a ${{VARIABLE}} or a url_file"
        )
    for path, (value, layer) in _merged(settings.layers).items():
        url = _resolved(path, settings)
        if path[-1] == "url_file" and isinstance(value, str | Path) and url_secrets(url):
            file = settings.folder / Path(value).expanduser()
            if _others_can_read(file):
                found.append(
                    f"{layer.label(path)}: the URL in {file} has a password, and others on this machine can read the file: "
                    f"chmod 600 {shlex.quote(str(file))}"
                )
    return list(dict.fromkeys(found))


def _secret_labels(settings: Settings) -> list[str]:
    """Where config.toml itself has a secret, not the name of a variable; in a profile that was not chosen, too."""
    return [
        layer.label(path)
        for base in settings.layers
        if base.in_file
        for layer in (base, *base.resting)
        for path, value in layer.leaves()
        if path not in layer.written and isinstance(value, str) and _is_secret(path, value)
    ]


def _is_secret(path: KeyPath, value: str) -> bool:
    return bool(url_secrets(value)) or names_secret(str(path[-1])) or path[-1] == "ping_url"


def _others_can_read(file: Path) -> bool:
    """By its permission bits, which count for root too. False where we are not the owner, who alone can mend it."""
    if os.name != "posix":
        return False
    try:
        found = file.stat()
    except OSError:
        return False
    return found.st_uid == os.geteuid() and bool(found.st_mode & (stat.S_IRGRP | stat.S_IROTH))
