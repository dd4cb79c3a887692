"""Making a task ready to cross to another process, and refusing what must not cross, by name, before anything starts."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from batchrun.errors import JobError
from batchrun.execution.work import Work

_FORBIDDEN: tuple[type, ...] = (Engine, Connection, Session, sessionmaker, scoped_session)
_REMEDIES = {
    "Engine": "Pass it as database=; each worker then builds its own from its URL and options, and the task gets a session.",
    "Connection": "Use the session the task is given: session.connection() is this item's connection.",
    "Session": "Use the session the task is given: task(session, item).",
    "sessionmaker": "Use the session the task is given: task(session, item).",
    "scoped_session": "Use the session the task is given: task(session, item).",
}
_DEPTH = 8


def check_crossing(function: Callable[..., Any], *, what: str = "The task") -> None:
    """Refuse a function that would carry a database connection, or a mapped class of ``__main__``, to a worker.

    Looks at closures, defaults, partial arguments, a bound method's object, and, for a function that travels by
    value, at the globals it uses. Raises JobError that names the variable and the remedy.
    """
    name = getattr(function, "__name__", str(function))
    for variable, value in _carried(function, set(), _DEPTH):
        kind = next((forbidden for forbidden in _FORBIDDEN if isinstance(value, forbidden)), None)
        if kind is not None:
            raise JobError(
                f"{what} {name!s} uses the variable {variable!r}, a SQLAlchemy {kind.__name__} of this process. A connection "
                f"must not be shared with another process. {_REMEDIES[kind.__name__]}"
            )
        if isinstance(value, type) and value.__module__ == "__main__" and hasattr(value, "__mapper__"):
            raise JobError(
                f"{what} {name!s} uses the mapped class {value.__name__!r}, which is defined in __main__. Workers never import "
                "__main__, and a mapping cannot travel by value. Move the class to a module, such as models.py, and import it."
            )


def _carried(thing: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """What travels along with a function: (name of the variable, value)."""
    if depth == 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    for name, value in _direct(thing):
        yield name, value
        yield from _carried(value, seen, depth - 1)


def _direct(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, functools.partial):
        yield from (("the partial's function", thing.func), *((f"argument {n}", arg) for n, arg in enumerate(thing.args)))
        yield from thing.keywords.items()
    elif isinstance(thing, types.MethodType):
        yield from (("self", thing.__self__), ("the method", thing.__func__))
    elif isinstance(thing, types.FunctionType):
        yield from _of_function(thing)
    elif isinstance(thing, list | tuple | set | frozenset) and len(thing) <= 1000:
        yield from (("an element of a collection", value) for value in thing)
    elif isinstance(thing, dict) and len(thing) <= 1000:
        yield from ((str(key), value) for key, value in thing.items())
    elif _is_own_object(thing):
        yield from vars(thing).items()


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet: a function that refers to itself
            continue
    for value in function.__defaults__ or ():
        yield "a default value", value
    yield from (function.__kwdefaults__ or {}).items()
    if travels_by_value(function):
        yield from ((name, function.__globals__[name]) for name in _names(function.__code__) if name in function.__globals__)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_own_object(thing: Any) -> bool:
    """An object whose attributes are what travels of it; one that says itself what it becomes in a pickle is left alone."""
    kind = type(thing)
    if isinstance(thing, type | types.ModuleType) or not hasattr(thing, "__dict__") or kind.__module__.startswith("sqlalchemy."):
        return False
    return all(
        getattr(kind, name, None) is getattr(object, name, None) for name in ("__reduce_ex__", "__reduce__", "__getstate__")
    )


def travels_by_value(function: types.FunctionType) -> bool:
    """True for what a worker cannot import: functions of ``__main__``, lambdas, functions inside functions."""
    module = sys.modules.get(function.__module__ or "")
    if module is None or function.__module__ == "__main__":
        return True
    found: Any = module
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return inspect.unwrap(found) is not inspect.unwrap(function) if callable(found) else True


def pack_work(work: Work) -> bytes:
    """Pickle the work, closures included. Raises JobError when something in it cannot travel."""
    try:
        return bytes(cloudpickle.dumps(work))
    except Exception as error:
        raise JobError(
            f"The task of job {work.job} cannot be sent to a worker: {type(error).__name__}: {error}. What it closes over must "
            "be plain data; make clients and files in an initializer, and reach them as ctx.state."
        ) from error
