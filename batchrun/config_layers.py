"""Where settings come from: config.toml, a profile in it, the environment, the command line; each one a Layer.

config.toml -> tomllib -> ${VAR} put in -> check_shape -> Layer "config.toml", Layer "profile NAME"
BATCHRUN_*  -> read_text ---------------> check_shape -> Layer "environment"
overrides   ----------------------------> check_shape -> Layer "command line"
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchrun.config_shape import TABLES, JobTable, check_shape, keys_of, read_text
from batchrun.errors import ConfigError
from batchrun.toml_places import KeyPath, Places, find_places

FILE_NAME = "config.toml"
SHOWN_ERRORS = 10
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")
_OTHER_VARIABLES = ("BATCHRUN_CONFIG", "BATCHRUN_PROFILE", "BATCHRUN_DEBUG")
_TEST_VARIABLES = "BATCHRUN_TEST_"
TOLD_COUNTS = ("planned", "done", "failed", "skipped", "quarantined", "unknown", "pending", "retries")
_TOLD_VARIABLES = frozenset(f"BATCHRUN_{name}".upper() for name in ("run", "job", "status", "exit_code", "message", *TOLD_COUNTS))
"""What a command of ``[notify] on_failure`` is told; a batchrun that it starts must not take them for settings."""


@dataclass(frozen=True, slots=True)
class Unset:
    """Stands for a value that needs a variable which is not set. ``message`` says so; it matters only if nothing overrides it."""

    message: str
    written: str


@dataclass(frozen=True, slots=True)
class Filled:
    """A value with variables in it, as it is written and as it is used."""

    text: object
    filled: object


@dataclass(frozen=True, slots=True)
class Layer:
    """One origin of settings. Paths are without the profile.

    tables: nested, the values checked, with Unset where a variable is missing. origin: for ``batchrun config``,
    such as "config.toml:12". label: for messages, such as "config.toml:12:1: run.workers". written: values as the
    file has them, before variables were put in. resting: the same file's profiles that were not chosen.
    """

    tables: Mapping[str, Any]
    origin: Callable[[KeyPath], str]
    label: Callable[[KeyPath], str]
    written: Mapping[KeyPath, Filled] = field(default_factory=dict)
    in_file: bool = False
    resting: tuple[Layer, ...] = ()

    def leaves(self) -> list[tuple[KeyPath, Any]]:
        """Every value with its path: (table, key), or ("jobs", name, key)."""
        return list(_leaves(self.tables, 2))


def _leaves(tables: Mapping[str, Any], depth: int, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    found: list[tuple[KeyPath, Any]] = []
    for name, value in tables.items():
        here = (*path, name)
        if len(here) < depth + (here[0] == "jobs"):
            found += _leaves(value, depth, here)
        else:
            found.append((here, value))
    return found


def raise_errors(errors: Sequence[str]) -> None:
    """Raise one ConfigError with the first ten of them, one a line; none: nothing."""
    if errors:
        more = [f"... and {len(errors) - SHOWN_ERRORS} more"] if len(errors) > SHOWN_ERRORS else []
        raise ConfigError("\n".join([*errors[:SHOWN_ERRORS], *more]))


# ------------------------------------------------------------------------------------------------------ the file
def find_file(config: str | Path | None, cwd: Path, origin: str) -> tuple[Path | None, tuple[Path, ...]]:
    """Return config.toml, or None, and the paths that were searched.

    Raises ConfigError when a file is named (by ``origin``, an option or a variable) that is not there.
    """
    if config is not None:
        named = cwd / Path(config).expanduser()
        if not os.path.lexists(named):
            raise ConfigError(f"{origin}: there is no file {named}; name the file, or make a project with: batchrun init")
        return Path(os.path.abspath(named)), (named,)  # noqa: PTH100 - Path.resolve() would follow a link away from its folder
    searched = tuple(folder / FILE_NAME for folder in (cwd, *cwd.parents))
    return next((path for path in searched if os.path.lexists(path)), None), searched


def read_regular(path: Path, what: str) -> str:
    """Read a text file. Raises ConfigError for anything else, and never waits for a pipe or a device."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file (a pipe, a device or a socket)"
            raise ConfigError(f"{what} is {kind}: {path}; name a text file, or make a project with: batchrun init")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {path}: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{what} is not UTF-8: {path}:{line}: byte 0x{data[error.start]:02x}; save it as UTF-8") from None


@dataclass(frozen=True, slots=True)
class Source:
    """config.toml as read. shown: how messages name it."""

    raw: dict[str, Any]
    places: Places
    shown: str

    def origin(self, path: KeyPath) -> str:
        return f"{self.shown}:{self.places.of(path).line}"

    def label(self, path: KeyPath) -> str:
        place = self.places.of(path)
        return f"{self.shown}:{place.line}:{place.column}: {'.'.join(map(str, path))}"


def read_source(path: Path, cwd: Path) -> Source:
    """Read and parse config.toml. Raises ConfigError with file, line and column."""
    text = read_regular(path, FILE_NAME)
    shown = str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)
    try:
        return Source(tomllib.loads(text), find_places(text), shown)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_message(text, shown, str(error))) from None
    except RecursionError:
        raise ConfigError(f"{shown}: the values are nested too deeply") from None


def _syntax_message(text: str, shown: str, message: str) -> str:
    match = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    line, column = (int(match[1]), int(match[2])) if match else (text.count("\n") + 1, 1)
    for path, first, second in find_places(text).twice:
        if second.line <= line:
            name = ".".join(map(str, path))
            return (
                f"{shown}:{second.line}:{second.column}: {name} is there twice; the first is at "
                f"{shown}:{first.line}:{first.column}. Keep one."
            )
    return f"{shown}:{line}:{column}: this is no TOML: {message.partition(' (at ')[0]}"


def file_layers(source: Source, profile: str | None, chosen_by: str, environ: Mapping[str, str]) -> list[Layer]:
    """Return the layers of config.toml and of the profile. Raises ConfigError with all that is wrong in the file."""
    written: dict[KeyPath, Filled] = {}
    unset: dict[KeyPath, Unset] = {}
    raw = _substituted(source.raw, (), environ, written, unset, source.label)
    tables, errors = check_shape(raw, source.label)
    raise_errors([_unwrite(error, written) for error in errors] + _job_name_errors(tables, source))
    _put_back(tables, unset)
    profiles = tables.pop("profile", {})
    if profile is not None and profile not in profiles:
        raise ConfigError(_no_profile(profile, list(profiles), chosen_by, source.shown))
    all_of_them = {name: _profile_layer(one, name, source, written) for name, one in profiles.items()}
    resting = tuple(layer for name, layer in all_of_them.items() if name != profile)
    plain = Layer(tables, source.origin, source.label, written, in_file=True, resting=resting)
    return [plain] if profile is None else [plain, all_of_them[profile]]


def _profile_layer(tables: dict[str, Any], name: str, source: Source, written: Mapping[KeyPath, Filled]) -> Layer:
    inside = ("profile", name)
    return Layer(
        tables,
        lambda path: f"profile {name} ({source.origin((*inside, *path))})",
        lambda path: source.label((*inside, *path)),
        {path[2:]: value for path, value in written.items() if path[:2] == inside},
        in_file=True,
    )


def _no_profile(name: str, known: list[str], chosen_by: str, shown: str) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    has = ", ".join(known) or "none; write one as [profile.NAME.run]"
    return f"{chosen_by}: {shown} has no profile {name!r}; {hint}it has {has}"


def _job_name_errors(tables: Mapping[str, Any], source: Source) -> list[str]:
    inside = [((), tables), *((("profile", name), one) for name, one in tables.get("profile", {}).items())]
    return [
        f"{source.label((*path, 'jobs', name))}: {name!r} is no name of a job: a job is named like its function"
        for path, one in inside
        for name in one.get("jobs", {})
        if not name.isidentifier()
    ]


def _unwrite(error: str, written: Mapping[KeyPath, Filled]) -> str:
    """A value that came from a variable is shown as the file has it."""
    for value in written.values():
        error = error.replace(repr(value.filled), repr(value.text))
    return error


# ------------------------------------------------------------------------------------------------- ${VARIABLES}
def _substituted(
    tables: Mapping[str, Any],
    path: KeyPath,
    environ: Mapping[str, str],
    written: dict[KeyPath, Filled],
    unset: dict[KeyPath, Unset],
    label: Callable[[KeyPath], str],
) -> dict[str, Any]:
    """Copy the tables with variables put in; what needs an unset one is left out and noted."""
    made: dict[str, Any] = {}
    for name, value in tables.items():
        here = (*path, name)
        if _is_table(here):  # where one is expected but none stands, check_shape says so
            is_dict = isinstance(value, dict)
            made[name] = _substituted(value, here, environ, written, unset, label) if is_dict else value
            continue
        try:
            filled = fill(value, environ)
        except ValueError as error:
            unset[here] = Unset(f"{label(here)}: {error}", str(value))
            continue
        if filled != value:
            filled = read_text(name, filled) if isinstance(filled, str) and not _is_parameter(here) else filled
            written[here] = Filled(value, filled)
        made[name] = filled
    return made


def _is_table(path: KeyPath) -> bool:
    inside = path[2:] if path[0] == "profile" else path
    return len(inside) < 2 or (inside[0] == "jobs" and len(inside) == 2)


def _is_parameter(path: KeyPath) -> bool:
    return "jobs" in path[:-1] and path[-1] not in keys_of(JobTable)


def fill(value: Any, environ: Mapping[str, str]) -> Any:
    """Put the variables of ``${NAME}`` in, also inside lists and inline tables; ``$${`` is a plain ``${``.

    Raises ValueError for a variable that is not set.
    """
    if isinstance(value, list):
        return [fill(one, environ) for one in value]
    if isinstance(value, dict):
        return {name: fill(one, environ) for name, one in value.items()}
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        if match[1] is None:
            raise ValueError("after ${ must come the name of a variable and }; for a plain ${ write $${")
        if match[1] not in environ:
            raise ValueError(f"the environment variable {match[1]} is not set; set it, or give this value another way")
        return environ[match[1]]

    return _VARIABLE.sub(variable, value)


def _put_back(tables: dict[str, Any], unset: Mapping[KeyPath, Unset]) -> None:
    for path, marker in unset.items():
        table = tables
        for name in path[:-1]:
            table = table.setdefault(str(name), {})
        table[str(path[-1])] = marker


# -------------------------------------------------------------------------------- environment and command line
def known_variables() -> dict[str, KeyPath]:
    """Every variable that sets a key of a table: its name -> (table, key)."""
    return {f"BATCHRUN_{table}_{key}".upper(): (table, key) for table, model in TABLES.items() for key in keys_of(model)}


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Read every ``BATCHRUN_<TABLE>_<KEY>``. Raises ConfigError for unknown, empty and wrong ones, all at once."""
    known = known_variables()
    ours = {name: text for name, text in sorted(environ.items()) if name.startswith("BATCHRUN_")}
    names = {path: name for name, path in known.items()}
    raw: dict[str, dict[str, object]] = {}
    errors = []
    for name, text in ours.items():
        if name in _OTHER_VARIABLES or name in _TOLD_VARIABLES or name.startswith(_TEST_VARIABLES):
            continue
        if name not in known:
            errors.append(f"{name}: there is no such variable{_near_variable(name, known)}")
        elif not text.strip():
            errors.append(f"{name}: this is set but empty; give it a value or unset it")
        else:
            table, key = map(str, known[name])
            raw.setdefault(table, {})[key] = read_text(key, text)
    tables, wrong = check_shape(raw, lambda path: names.get(path[:2], "the environment"))
    raise_errors(errors + wrong)
    return Layer(tables, lambda path: f"environment {names[path]}", lambda path: names[path])


def _near_variable(name: str, known: Mapping[str, KeyPath]) -> str:
    endings = [one.removeprefix("BATCHRUN_") for one in (*known, *_OTHER_VARIABLES)]  # all begin alike: that is no likeness
    near = difflib.get_close_matches(name.removeprefix("BATCHRUN_"), endings, 1)
    if near:
        return f"; did you mean BATCHRUN_{near[0]}?"
    return "; they are named BATCHRUN_<TABLE>_<KEY> for the tables " + ", ".join(TABLES) + "; jobs are set in config.toml"


def option_name(path: KeyPath) -> str:
    """The command line's name of a key: --workers for run.workers, --database-url for database.url."""
    shown = path[1:] if path[0] == "run" else path
    return "--" + "-".join(map(str, shown)).replace("_", "-")


def override_layer(overrides: Mapping[str, object]) -> Layer:
    """Read values of the command line by their dotted names, such as "database.url"."""
    raw: dict[str, dict[str, object]] = {}
    for name, value in overrides.items():
        table, _, key = name.partition(".")
        raw.setdefault(table, {})[key] = read_text(key, value) if isinstance(value, str) else value
    tables, errors = check_shape(raw, option_name)
    raise_errors(errors)
    return Layer(tables, lambda path: f"command line {option_name(path)}", option_name)
