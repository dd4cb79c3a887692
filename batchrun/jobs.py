"""Jobs: the ``@job`` decorator and what it keeps about a function. A decorated function stays that very function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from batchrun.errors import ConfigError
from batchrun.options import OPTION_NAMES, SETTING_NAMES, RunOptions, checked_setting, with_options

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Job:
    """What ``@job`` keeps: the task, where its items come from, its options. Reached as ``function.job``.

    options: the RunOptions the decorator named, unmerged. settings: schedule, timezone, if_running, enabled,
    on_unfinished as given. folder: the project's folder, set by the loader; None for a job made elsewhere.
    """

    name: str
    task: Callable[..., Any]
    items: Callable[..., Any] | None = None
    initializer: Callable[..., Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None

    @property
    def summary(self) -> str:
        """The first line of the task's docstring."""
        return (inspect.getdoc(self.task) or "").partition("\n")[0]

    @property
    def module(self) -> str:
        return self.task.__module__


class JobFunction(Protocol, Generic[P, R]):
    """A decorated task as type checkers see it: the function, plus three attributes."""

    job: Job
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def items(self, function: F, /) -> F:
        """Decorate the function that returns (or yields) the job's items."""

    def initializer(self, function: F, /) -> F:
        """Decorate the function that is called once in each worker; what it returns is ``ctx.state``."""


@overload
def job(function: Callable[P, R], /) -> JobFunction[P, R]: ...
@overload
def job(**options: Any) -> Callable[[Callable[P, R]], JobFunction[P, R]]: ...
def job(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a job, as ``@job`` or ``@job(transaction="chunk", timeout="30s")``.

    It takes every option of ``RunOptions``, checked at once, and ``schedule``, ``timezone``, ``if_running``,
    ``enabled``, ``on_unfinished``. Raises ConfigError for any other. The name is the function's own; the first
    line of its docstring is what ``batchrun jobs`` shows. Returns the very function with attributes added, so
    it pickles by reference and can be called in a unit test as it is.
    """
    if function is not None:
        return _decorate(function, {})
    return lambda decorated: _decorate(decorated, options)


def _decorate(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    name = getattr(function, "__name__", "job")
    settings = {key: _setting(name, key, value) for key, value in given.items() if key in SETTING_NAMES}
    options = {key: value for key, value in given.items() if key not in SETTING_NAMES}
    checked = with_options(RunOptions(), options, where=f"@job {name}: ")
    made = Job(name, function, options={key: getattr(checked, key) for key in OPTION_NAMES if key in options}, settings=settings)

    def items(source: F, /) -> F:
        made.items = source
        return source

    def initializer(once: F, /) -> F:
        made.initializer = once
        return once

    decorated = cast(Any, function)
    decorated.job, decorated.items, decorated.initializer = made, items, initializer
    return function


def _setting(job_name: str, key: str, value: object) -> Any:
    try:
        return checked_setting(key, value)
    except ValueError as error:
        raise ConfigError(f"@job {job_name}: {key}: {error}") from None


def job_of(function: object) -> Job | None:
    """The Job a function was decorated to be, or None."""
    found = getattr(function, "job", None)
    return found if isinstance(found, Job) else None
