"""Engines: what crosses to a worker is a description; the engine itself is built where it is used.

Engine, URL or factory (parent)  ->  EngineSpec (plain data, pickled)  ->  an engine of its own (worker)
"""

from __future__ import annotations

import gc
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool, QueuePool

from batchrun.database import pooler
from batchrun.database.drivers import Driver, driver_named
from batchrun.database.gate import Gate, install
from batchrun.database.turnstile import Turnstile
from batchrun.database.urls import normalise, passwords_in, sqlite_file
from batchrun.errors import ConfigError, JobError
from batchrun.masking import names_secret

SQLITE_WAIT_S = 30.0
"""How long a worker waits for another program's lock on a SQLite file; the run's own workers take turns."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How to build an engine, in any process.

    url: normalised; None with a factory. options: ``create_engine`` arguments that were read off an Engine.
    execution: its execution options. isolation: the level BEGIN carries, None = the server's default.
    factory: a callable that makes an Engine. pool: "queue" = as many connections as threads, held;
    "null" = one per transaction. connect_timeout: seconds. rehearses: for a dry run, which commits nothing.
    """

    url: URL | None
    options: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)
    isolation: str | None = None
    factory: Callable[[], Engine] | None = None
    pool: str = "queue"
    connect_timeout: float = 10.0
    rehearses: bool = False

    @property
    def is_sqlite(self) -> bool:
        return self.url is not None and self.url.get_backend_name() == "sqlite"

    @property
    def secrets(self) -> list[str]:
        """Its passwords, for ``masking.Redactor``."""
        arguments = self.options.get("connect_args", {})
        given = [str(value) for name, value in arguments.items() if names_secret(str(name)) and value]
        return given + ([] if self.url is None else passwords_in(self.url))

    @property
    def identity(self) -> str:
        """Where it leads, without user or password: two specs with one identity share a database."""
        if self.url is None:
            return "factory"
        if self.is_sqlite:
            return f"sqlite:{sqlite_file(self.url).resolve()}"
        return f"postgresql:{self.url.host}:{self.url.port or 5432}/{self.url.database}?{sorted(self.url.query.items())}"


@dataclass(slots=True)
class WorkerEngine:
    """An engine with its gates, as a worker thread uses it."""

    engine: Engine
    driver: Driver
    gates: dict[int, Gate]
    spec: EngineSpec


def spec_of(database: object, *, pool: str = "queue", connect_timeout: float = 10.0, folder: Path | None = None) -> EngineSpec:
    """Describe what the caller gave: a URL, an Engine or a factory.

    Of an Engine only its URL and options are read; its pool never crosses. Raises ConfigError for anything else,
    an in-memory database, an engine with a ``creator`` or an engine in AUTOCOMMIT.
    """
    if isinstance(database, str | URL):
        return EngineSpec(normalise(database, folder), pool=pool, connect_timeout=connect_timeout)
    if isinstance(database, Engine):
        return replace(_of_engine(database, folder), pool=pool, connect_timeout=connect_timeout)
    if callable(database):
        return EngineSpec(None, factory=database, pool=pool, connect_timeout=connect_timeout)
    raise ConfigError(
        f"database is a {type(database).__name__}; pass a URL, an Engine (its URL and options are read) "
        "or a function that makes an Engine."
    )


def _of_engine(engine: Engine, folder: Path | None) -> EngineSpec:
    execution = dict(engine.get_execution_options())
    isolation = execution.pop("isolation_level", None) or getattr(engine.dialect, "_on_connect_isolation_level", None)
    return EngineSpec(
        normalise(engine.url, folder),
        options={"connect_args": _connect_args(engine)},
        execution=execution,
        isolation=_begin_level(isolation),
    )


def _begin_level(level: str | None) -> str | None:
    if level is not None and level.upper().replace("_", " ") == "AUTOCOMMIT":
        raise ConfigError(
            "The engine's isolation level is AUTOCOMMIT, which would commit a task's work before the mark that says it is done. "
            "Give an engine with a transaction level, or use read_only=True for tasks that only read."
        )
    return level.upper().replace("_", " ") if level else None


def _connect_args(engine: Engine) -> dict[str, Any]:
    """The arguments beyond the URL. SQLAlchemy keeps them in the closure of the pool's creator, and nowhere else."""
    closure = inspect.getclosurevars(engine.pool._creator).nonlocals
    if "cparams" not in closure:
        raise ConfigError(
            "The engine was made with creator= or a pool of its own, which cannot be rebuilt in a worker. "
            "Pass a function that makes the engine instead: run_parallel(task, items, database=make_engine)."
        )
    from_url = engine.dialect.create_connect_args(engine.url)[1]
    return {name: value for name, value in closure["cparams"].items() if name not in from_url or from_url[name] != value}


def worker_engine(
    spec: EngineSpec,
    *,
    threads: int,
    application_name: str,
    read_only: bool = False,
    turnstile: Callable[[], Turnstile] | None = None,
) -> WorkerEngine:
    """Build the engine of one worker, gates installed. Connects to nothing yet."""
    engine = _build(spec, application_name, pool_size=threads)
    driver = driver_named(engine.dialect.driver)
    gates = install(
        engine, driver, read_only=read_only, wait_s=SQLITE_WAIT_S, turnstile=turnstile, rehearses=spec.rehearses
    )  # fmt: skip
    if driver.name == "psycopg2":
        _server_side_cursors_in_autocommit(engine, gates)
    return WorkerEngine(engine, driver, gates, spec if spec.factory is None else _adopted(engine, spec))


def control_engine(spec: EngineSpec, *, application_name: str) -> Engine:
    """The parent's own engine: one connection, plain semantics; on SQLite it never waits for a lock."""
    engine = _build(spec, application_name, pool_size=1, overflow=1)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def connected(raw: Any, record: Any) -> None:
            driver_named("pysqlite").prepare(raw, read_only=False, wait_s=0, as_it_is=spec.rehearses)

        @event.listens_for(engine, "begin")
        def begin(connection: Any) -> None:
            how = connection.get_execution_options().get("batchrun_begin", "BEGIN")
            connection.exec_driver_sql(how)

    return engine


def _build(spec: EngineSpec, application_name: str, *, pool_size: int, overflow: int = 0) -> Engine:
    """overflow: connections beyond ``pool_size`` that are closed when they are given back."""
    engine = _from_factory(spec.factory) if spec.factory else _from_url(spec, application_name, pool_size, overflow)
    pooler.watch(engine)
    return engine


def _from_url(spec: EngineSpec, application_name: str, pool_size: int, overflow: int) -> Engine:
    assert spec.url is not None
    options = dict(spec.options)
    arguments = dict(options.pop("connect_args", {}))
    if spec.is_sqlite:
        arguments.setdefault("check_same_thread", False)
    else:
        arguments.setdefault("connect_timeout", max(2, round(spec.connect_timeout)))
        arguments["application_name"] = application_name.encode()[:63].decode(errors="ignore")
    queue = {"poolclass": QueuePool, "pool_size": pool_size, "max_overflow": overflow}
    pool = {"poolclass": NullPool} if spec.pool == "null" else queue
    try:
        engine = create_engine(spec.url, connect_args=arguments, **pool, **options)
    except ArgumentError:  # whose text may hold what was taken for a host or port
        raise ConfigError("The database URL cannot be used: what it says about hosts and ports cannot be read.") from None
    return engine.execution_options(**spec.execution) if spec.execution else engine


def _from_factory(factory: Callable[[], Engine]) -> Engine:
    made = factory()
    if not isinstance(made, Engine):
        raise JobError(
            f"The database factory {getattr(factory, '__name__', factory)!s} returned {type(made).__name__}, not an Engine."
        )
    normalise(made.url)  # refuses what no worker can share, such as an in-memory database
    return made


def _adopted(engine: Engine, spec: EngineSpec) -> EngineSpec:
    isolation = engine.get_execution_options().get("isolation_level") or getattr(
        engine.dialect, "_on_connect_isolation_level", None
    )
    return replace(spec, isolation=_begin_level(isolation))


def begin_statement(spec: EngineSpec, dialect_name: str) -> str:
    """BEGIN as the user's engine would have it."""
    if dialect_name == "sqlite":
        return "BEGIN IMMEDIATE"
    return f"BEGIN ISOLATION LEVEL {spec.isolation}" if spec.isolation else "BEGIN"


def _server_side_cursors_in_autocommit(engine: Engine, gates: Mapping[int, Gate]) -> None:
    """psycopg2 refuses named cursors in driver autocommit unless they are WITH HOLD; ours end with the item anyway."""
    plain: Any = engine.dialect.execution_ctx_cls

    class Held(plain):  # type: ignore[misc]
        def create_server_side_cursor(self) -> Any:
            if gate := gates.get(id(self._dbapi_connection.dbapi_connection)):
                gate.cursors = True
            return self._dbapi_connection.cursor(f"batchrun_{id(self):x}", withhold=True)

    engine.dialect.execution_ctx_cls = Held


def abandon_inherited_engines() -> int:
    """In a forked child: let go of every engine of the parent without closing the parent's connections.

    Returns how many. ``dispose()`` without ``close=False`` would say goodbye to the server on the parent's sockets. The
    old pools are kept, unused, to the end: what is never freed closes nothing, and SQLite would roll back on closing.
    """
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), Engine)]  # isinstance() would ask proxies
    level = logging.root.manager.disable
    logging.disable()  # a pool logs its end, and a handler may wait for a lock that another thread held at the fork
    try:
        for engine in found:
            _inherited.append(engine.pool)
            engine.dispose(close=False)
    finally:
        logging.disable(level)
    return len(found)


_inherited: list[object] = []


def source_engine(spec: EngineSpec, *, application_name: str) -> Engine:
    """The engine the parent reads its source with, and gives the items function a session of: one connection of either."""
    engine = _build(spec, application_name, pool_size=1, overflow=1)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def connected(raw: Any, record: Any) -> None:
            level = raw.isolation_level
            driver_named("pysqlite").prepare(raw, read_only=False, wait_s=SQLITE_WAIT_S, as_it_is=spec.rehearses)
            raw.isolation_level = level

    return engine
