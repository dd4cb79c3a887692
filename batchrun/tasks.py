"""What a task looks like to the runner: how it is called, and the Context it may ask for."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchrun.errors import JobError

Task = Callable[..., Any]
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(slots=True)
class Context:
    """What a task with a parameter named ``ctx`` gets, anew for each attempt.

    run, job: id of the run and name of the job. item: the item (the list of them in a batched task).
    key: an idempotency key for effects outside the database: the same for every attempt of an item in this
    run, also after a resume or retry. attempt: counted from 1. deadline: ``time.monotonic()`` at which the
    time limit is over, None = no limit. params: the job's parameters. state: what the initializer returned.
    """

    run: str
    job: str
    item: Any
    key: str
    attempt: int
    deadline: float | None
    params: Mapping[str, Any]
    state: Any
    logger: logging.Logger
    _stopping: Callable[[], bool] = field(repr=False, default=lambda: False)

    def should_stop(self) -> bool:
        """True once the run is to end: a long task may then raise ``Retry`` or return early."""
        return self._stopping()


@dataclass(frozen=True, slots=True)
class TaskShape:
    """How a task takes its arguments.

    positional: what goes where, of "session", "item", "ctx". named: which of "session", "ctx" go by keyword.
    params: its other keyword-only parameters; required: those of them without a default.
    """

    positional: tuple[str, ...]
    named: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    @property
    def wants_ctx(self) -> bool:
        return "ctx" in self.positional or "ctx" in self.named

    def bind(self, task: Task, params: Mapping[str, Any]) -> Callable[[Any, Any, Any], Any]:
        """Return ``call(session, item, ctx)``; the usual shapes cost no more than the task's own call."""
        if not self.named and not params:
            if self.positional == ("session", "item"):
                return lambda session, item, ctx: task(session, item)
            if self.positional == ("item",):
                return lambda session, item, ctx: task(item)

        def call(session: Any, item: Any, ctx: Any) -> Any:
            given = {"session": session, "item": item, "ctx": ctx}
            return task(*(given[role] for role in self.positional), **{role: given[role] for role in self.named}, **params)

        return call

    def bind_item(self, task: Task, params: Mapping[str, Any]) -> Callable[[Any], Any]:
        """Return ``call(item)``, for a task that gets neither session nor context; often it is the task itself."""
        if self.positional == ("item",) and not self.named and not params:
            return task
        call = self.bind(task, params)
        return lambda item: call(None, item, None)


def task_shape(task: Task, *, has_session: bool, what: str = "The task") -> TaskShape:
    """Read a task's signature.

    has_session: the run gives a session (a database, and transaction is not "none").
    Raises JobError, with the signature, for a task that cannot be called as ``task(session, item)`` or
    ``task(item)``, is async or a generator.
    """
    shown = f"{what} {getattr(task, '__name__', task)!s}"
    if not callable(task):
        raise JobError(f"{what} is {task!r}, which is not a function.")
    if inspect.iscoroutinefunction(task) or inspect.isasyncgenfunction(task):
        raise JobError(f"{shown} is async; batchrun runs plain functions: write def instead of async def.")
    if inspect.isgeneratorfunction(task):
        raise JobError(f"{shown} is a generator; calling it would run nothing: replace yield by return.")
    try:
        signature = inspect.signature(task)
    except (TypeError, ValueError):  # some builtins have none
        return TaskShape(("session", "item") if has_session else ("item",))
    return _shape(signature, has_session, shown)


def _shape(signature: inspect.Signature, has_session: bool, shown: str) -> TaskShape:
    parameters = signature.parameters
    plain = [p for p in parameters.values() if p.kind in _POSITIONAL and p.name not in ("session", "ctx")]
    required = [p for p in plain if p.default is p.empty]
    star = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    named = "session" in parameters
    wanted = 2 if has_session and not named else 1
    if named and not has_session:
        raise JobError(f"{shown}{signature} takes a session, but there is none: no database was given, or transaction is 'none'.")
    if len(required) > wanted or (len(plain) < wanted and not star):
        usual = "(session, item)" if has_session else "(item)"
        raise JobError(
            f"{shown}{signature} cannot be called as task{usual}; "
            + ("give it those two parameters, or use transaction='none'." if has_session else "give it one parameter, the item.")
        )
    keywords = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in ("session", "ctx")]
    positional, by_name = _roles(list(parameters.values()), ["session", "item"] if wanted == 2 else ["item"])
    return TaskShape(
        positional, by_name, tuple(p.name for p in keywords), tuple(p.name for p in keywords if p.default is p.empty)
    )


def _roles(parameters: list[inspect.Parameter], unnamed: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which role each positional parameter plays, up to the first that plays none; the rest goes by keyword."""
    positional: list[str] = []
    by_name: list[str] = []
    waiting = list(unnamed)
    contiguous = True
    for parameter in parameters:
        known = parameter.name in ("session", "ctx")
        if parameter.kind in _POSITIONAL and contiguous and (known or waiting):
            positional.append(parameter.name if known else waiting.pop(0))
        elif known:
            by_name.append(parameter.name)
        else:
            contiguous = False
    return (*positional, *waiting), tuple(by_name)
