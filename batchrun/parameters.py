"""The parameters of a job: read from its signatures, typed by pydantic, written down for the ledger without secrets.

"since=2026-01-01" -> parse_params -> {"since": date(2026, 1, 1)} -> split_call -> items function, task
                                             |-> dump_params -> {"since": "2026-01-01"} in the ledger -> restore_params
"""

from __future__ import annotations

import difflib
import enum
import functools
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PydanticUserError, Secret, SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from batchrun.durations import seconds
from batchrun.errors import ConfigError, JobError, RunChanged
from batchrun.jobs import Job
from batchrun.masking import MASK
from batchrun.options import OPTION_NAMES, SETTING_NAMES

RESERVED = frozenset(
    {
        *OPTION_NAMES,
        *SETTING_NAMES,
        *(
            "accept_changes",
            "config",
            "database_url",
            "debug",
            "dry_run",
            "help",
            "json",
            "profile",
            "progress",
            "quiet",
            "sample",
        ),
    }
)
"""Names of options; a parameter of such a name could not be told from the option."""

_SECRETS = (SecretStr, SecretBytes, Secret)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NOT_GIVEN = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a job.

    annotation: resolved; ``inspect.Parameter.empty`` where there is none. default: the same where it is required.
    secret: its type is SecretStr or the like; its value is shown nowhere.
    """

    name: str
    annotation: Any
    default: Any
    secret: bool

    @property
    def required(self) -> bool:
        return self.default is _NOT_GIVEN

    @property
    def type_text(self) -> str:
        """The type as people write it: ``date``, ``int | None``, ``str`` where there is no annotation."""
        return "str" if self.annotation is _NOT_GIVEN else _type_text(self.annotation)

    def __str__(self) -> str:
        """One line for people: ``since: date = 2000-01-01``."""
        if self.required:
            return f"{self.name}: {self.type_text} (required)"
        shown = mask_values(self.default)
        return f"{self.name}: {self.type_text} = {shown.value if isinstance(shown, enum.Enum) else shown}"


# ------------------------------------------------------------------------------------------------ from signatures
def parameters_of(job: Job) -> dict[str, Parameter]:
    """Return the parameters of a job: the items function's, then the task's keyword-only ones; ``session`` and ``ctx`` are none.

    A name that is in both is one parameter and goes to both. Raises JobError where the two disagree, or an
    annotation cannot be resolved.
    """
    found = _own(job.items, (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)) if job.items is not None else {}
    for name, parameter in _own(job.task, (inspect.Parameter.KEYWORD_ONLY,)).items():
        found[name] = _agreed(job, found[name], parameter) if name in found else parameter
    return found


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _own(function: Callable[..., Any], kinds: Collection[Any]) -> dict[str, Parameter]:
    made = {}
    for parameter in _signature(function).parameters.values():
        if parameter.kind in kinds and parameter.name not in ("session", "ctx"):
            annotation = _resolved(function, parameter)
            made[parameter.name] = Parameter(parameter.name, annotation, parameter.default, _is_secret(annotation))
    return made


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        if sys.version_info >= (3, 14):  # else names imported for type checkers only would raise here
            import annotationlib

            return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
        return inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return inspect.Signature()


def _resolved(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The annotation, evaluated if it is text. One by one: that of ``session`` may exist for type checkers only."""
    annotation = parameter.annotation
    if annotation is _NOT_GIVEN:
        return annotation
    holder = types.SimpleNamespace(__annotations__={parameter.name: annotation})
    plain = _innermost(function)
    try:
        hints = typing.get_type_hints(holder, getattr(plain, "__globals__", {}), _enclosed(plain), include_extras=True)
    except Exception as error:
        raise JobError(
            f"{_where(function)}: the type {annotation!r} of the parameter {parameter.name} cannot be resolved: {error}; "
            "import it where the job can see it, not only under `if TYPE_CHECKING`."
        ) from error
    found = hints[parameter.name]
    return found | None if parameter.default is None and not isinstance(found, str) and found is not Any else found


def _innermost(function: Any) -> Any:
    """The function inside a partial, a bound method or a callable object: its module's names are those its annotations use."""
    while True:
        function = inspect.unwrap(function)
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, type) or hasattr(function, "__code__") or not hasattr(type(function).__call__, "__code__"):
            return function
        else:
            function = type(function).__call__


def _enclosed(function: Any) -> dict[str, Any]:
    """The names a function closes over."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    made = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            made[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    return made


def _where(function: Callable[..., Any]) -> str:
    code = getattr(_innermost(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else str(getattr(function, "__name__", function))


def _agreed(job: Job, first: Parameter, second: Parameter) -> Parameter:
    """One parameter that both functions take. An annotation or default that only one of them has counts for both."""
    annotation = second.annotation if first.annotation is _NOT_GIVEN else first.annotation
    default = second.default if first.required else first.default
    if second.annotation is not _NOT_GIVEN and second.annotation != annotation:
        raise JobError(
            f"{_where(job.task)}: the parameter {first.name} of job {job.name} is {first.type_text} in its items function and "
            f"{second.type_text} in its task; write one type."
        )
    if not second.required and not _same(second.default, default):
        raise JobError(
            f"{_where(job.task)}: the parameter {first.name} of job {job.name} has one default in its items function and another "
            "in its task; write one."
        )
    return Parameter(first.name, annotation, default, first.secret or second.secret)


def _same(one: object, other: object) -> bool:
    return one is other or bool(one == other)


def check_names(job: Job) -> None:
    """Raise JobError if a parameter is named like an option, or the items function asks for ``ctx``."""
    for name in parameters_of(job):
        if name in RESERVED:
            raise JobError(
                f"{_where(job.task)}: the parameter {name} of job {job.name} is named like an option of batchrun run; "
                f"rename it, for example to {name}_value."
            )
    if job.items is not None and "ctx" in _signature(job.items).parameters:
        raise JobError(f"{_where(job.items)}: the items function of job {job.name} asks for ctx; only its task gets one.")


# ------------------------------------------------------------------------------------------------------ parsing
def parse_params(job: Job, given: Mapping[str, Any], *, places: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a value for every parameter: those given, typed, and the defaults of the others.

    given: texts of the command line, values of config.toml, or values typed already. For a job whose items come
    from elsewhere pass ``replace(job, items=None)``: only the task's own parameters count then. places: what a
    message begins with for a value of config.toml, such as "config.toml:12:1: jobs.send.since". Raises ConfigError
    with all that is wrong, and the job's parameters.
    """
    known = parameters_of(job)
    errors = [
        f"{_begin(name, places)}{_unknown(name, known, job, name in (places or {}))}" for name in given if name not in known
    ]
    errors += [f"{name}: this parameter is missing" for name, one in known.items() if one.required and name not in given]
    made: dict[str, Any] = {}
    for name, parameter in known.items():
        if name not in given:
            made[name] = parameter.default
            continue
        try:
            made[name] = _parsed(parameter, given[name])
        except ValueError as error:
            errors.append(f"{_begin(name, places)}{_shown(parameter, given[name])} is no {parameter.type_text}: {error}")
    if errors:
        raise ConfigError("\n".join([*errors, *_listing(job, known)]))
    return made


def _begin(name: str, places: Mapping[str, str] | None) -> str:
    return f"{(places or {}).get(name, name)}: "


def _shown(parameter: Parameter, value: object) -> str:
    return "the value (hidden)" if parameter.secret else repr(mask_values(value))


def _unknown(name: str, known: Collection[str], job: Job, in_file: bool) -> str:
    option = name.replace("-", "_")
    if option in RESERVED and option not in known:
        return f"this is an option, not a parameter of {job.name}: write --{name.replace('_', '-')}"
    taken = _signature(job.task).parameters.get(option)
    if taken is not None and taken.kind in _POSITIONAL and taken.default is not taken.empty:
        return f"the task takes {option!r} by position; a parameter of {job.name} is keyword-only: write it behind a * there"
    near = difflib.get_close_matches(option, [*known, *(RESERVED if in_file else ())], 1)
    return f"there is no such parameter of {job.name}" + (f"; did you mean {near[0]!r}?" if near else "")


def _listing(job: Job, known: Mapping[str, Parameter]) -> list[str]:
    if not known:
        return [f"{job.name} takes no parameters."]
    return [f"Parameters of {job.name}:", *(f"  {parameter}" for parameter in known.values())]


def _parsed(parameter: Parameter, value: Any) -> Any:
    """Raises ValueError with a reason that does not show the value."""
    if parameter.annotation is _NOT_GIVEN:
        return value
    adapter = _adapter(parameter)
    try:
        return adapter.validate_python(value, strict=True)  # what has the type already stays as it is
    except ValidationError:
        pass
    try:
        return adapter.validate_python(_prepared(parameter.annotation, value))
    except ValidationError as error:
        raise ValueError("it is refused by its type" if parameter.secret else error.errors()[0]["msg"].lower()) from None


def _adapter(parameter: Parameter) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(parameter.annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        pass  # models and dataclasses bring a configuration of their own
    try:
        return TypeAdapter(parameter.annotation)
    except PydanticUserError as error:
        raise JobError(
            f"The type {parameter.type_text} of the parameter {parameter.name} is none pydantic can read: {error.message}"
        ) from None


def _prepared(annotation: Any, value: Any) -> Any:
    """Turn a text into what pydantic's lax mode can take where it cannot take the text itself."""
    annotation = _bare(annotation)
    inner = _element_types(annotation)
    if isinstance(value, str):
        value = _from_text(annotation, value)
    if inner is not None and isinstance(value, list):
        return [_prepared(inner[min(place, len(inner) - 1)], one) if inner else one for place, one in enumerate(value)]
    return value


def _from_text(annotation: Any, text: str) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return _from_union(get_args(annotation), text)
    if get_origin(annotation) is Literal:
        return next((choice for choice in get_args(annotation) if str(choice) == text), text)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return next((one for one in annotation if text in (one.name, str(one.value))), text)
    if annotation is timedelta:
        return _duration(text)
    if _element_types(annotation) is not None:
        return (
            _json(text) if text.lstrip().startswith("[") else [part.strip() for part in text.split(",")] if text.strip() else []
        )
    return _json(text) if text.lstrip().startswith("{") and _takes_object(annotation) else text


def _from_union(members: tuple[Any, ...], text: str) -> Any:
    if type(None) in members and (text.lower() == "none" or (not text and str not in members)):
        return None
    others = [member for member in members if member is not type(None)]
    return _prepared(others[0], text) if len(others) == 1 else text


def _duration(text: str) -> Any:
    try:
        return timedelta(seconds=seconds(text))
    except ValueError:
        return text  # pydantic reads ISO 8601 and 12:30:00


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _bare(annotation: Any) -> Any:
    """The type without Annotated and NewType around it."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        else:
            return annotation


def _element_types(annotation: Any) -> tuple[Any, ...] | None:
    """The types of a list's elements, () where they are not named; None if it is no list, tuple or set."""
    origin = get_origin(annotation) or annotation
    if origin not in (list, tuple, set, frozenset) and getattr(origin, "__name__", "") not in (
        "Sequence",
        "Iterable",
        "Collection",
    ):
        return None
    return tuple(one for one in get_args(annotation) if one is not ...)


def _takes_object(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and (
        issubclass(origin, dict | BaseModel)
        or hasattr(origin, "__dataclass_fields__")
        or origin.__name__ in ("Mapping", "MutableMapping")
    )


def _is_secret(annotation: Any) -> bool:
    bare = _bare(annotation)
    if isinstance(get_origin(bare) or bare, type) and issubclass(get_origin(bare) or bare, _SECRETS):
        return True
    return any(_is_secret(one) for one in get_args(bare) if one is not ...)


def _type_text(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type_text(one) for one in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " | ".join(repr(one) for one in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " | ".join(repr(one.value) for one in annotation)
    if annotation is type(None):
        return "None"
    if inner := get_args(annotation):
        shown = ", ".join("..." if one is ... else _type_text(one) for one in inner)
        return f"{getattr(get_origin(annotation), '__name__', annotation)}[{shown}]"
    return str(getattr(annotation, "__name__", annotation))


# ------------------------------------------------------------------------------------- writing down, masking, use
def mask_values(value: Any) -> Any:
    """Copy lists, tuples, sets and dicts with ``***`` for every secret in them."""
    if isinstance(value, _SECRETS):
        return MASK
    if isinstance(value, dict):
        return {name: mask_values(one) for name, one in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(mask_values(one) for one in value)
    return value


def masked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run as they may be shown: ``***`` for every SecretStr."""
    return {name: mask_values(value) for name, value in values.items()}


def secrets_in(values: Any) -> list[str]:
    """The texts of every secret in the parameters, for ``masking.Redactor``."""
    if isinstance(values, _SECRETS):
        found = values.get_secret_value()
        return [found.decode(errors="replace") if isinstance(found, bytes) else str(found)]
    inner = (
        values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple | set | frozenset) else ()
    )
    return [one for value in inner for one in secrets_in(value)]


def dump_params(job: Job, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters as JSON has them, in one form for equal values, secrets as ``***``.

    Raises ConfigError for a value that is none of the types a parameter can have.
    """
    made = {}
    for name in sorted(values):
        value = mask_values(values[name])
        if isinstance(value, set | frozenset):
            value = sorted(value, key=repr)
        try:
            made[name] = to_jsonable_python(value)
        except (PydanticSerializationError, ValueError):
            kind = type(value).__name__
            raise ConfigError(
                f"{name}: a {kind} cannot be recorded as a parameter of {job.name}; pass text, numbers, dates or lists of them"
            ) from None
    return made


def restore_params(
    job: Job, stored: Mapping[str, Any], given: Mapping[str, Any], *, said: Collection[str] = (), accept_changes: bool = False
) -> dict[str, Any]:
    """Return the values of a run from what ``dump_params`` wrote, to resume it.

    given: those of config.toml and the command line, from which the secrets are taken, since the ledger has none.
    said: those that the command line names; they must be the run's own, or ``accept_changes`` lets them hold from now on.
    Raises ConfigError for a secret that is not given again, and where the job takes other parameters by now;
    RunChanged for another value.
    """
    kept = _kept_params(job, stored, given)
    made = parse_params(job, kept)
    changed = parse_params(job, {**kept, **{name: given[name] for name in said if name in given}})
    if changed == made or accept_changes:
        return changed
    old, new = dump_params(job, made), dump_params(job, changed)
    what = "; ".join(f"{name} was {old.get(name)!r}, is {new[name]!r}" for name in new if old.get(name) != new[name])
    if not what:  # only secrets differ, which may well be new ones
        return changed
    raise RunChanged(
        f"A run of {job.name} keeps its parameters, but the command line gives others: {what}. Leave them out, start a new run, "
        "or go on with --accept-changes."
    )


def _kept_params(job: Job, stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    known = parameters_of(job)
    kept: dict[str, Any] = {}
    for name, value in stored.items():
        parameter = known.get(name)
        if parameter is None or not (parameter.secret or value == MASK):
            kept[name] = value
        elif name in given:
            kept[name] = given[name]
        elif parameter.required:
            raise ConfigError(
                f"{name}: the ledger keeps no secrets; give this parameter again, or set it in config.toml as ${{VARIABLE}}"
            )
    return kept


def split_call(job: Job, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the items function and what the task get, by name."""
    for_items = _own_names(job.items, (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)) if job.items is not None else set()
    for_task = _own_names(job.task, (inspect.Parameter.KEYWORD_ONLY,))
    return (
        {name: value for name, value in params.items() if name in for_items},
        {name: value for name, value in params.items() if name in for_task},
    )


def _own_names(function: Callable[..., Any], kinds: Collection[Any]) -> set[str]:
    return {name for name, one in _signature(function).parameters.items() if one.kind in kinds and name not in ("session", "ctx")}
