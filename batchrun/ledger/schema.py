"""The ledger's tables, and making sure that they are there.

    batchrun_run       one row a run; written by its owner only, workers never touch it
    batchrun_chunk     one row a chunk; ``pos`` = how many of its items are settled: lock, cursor and proof in one
    batchrun_payload   the items of an open chunk, apart: a mark that rewrites a row with its items inline costs
    batchrun_item      only items that went wrong, so that they can be retried from the ledger alone
    batchrun_request   what people ask of a run from elsewhere: to pause, to cancel, another speed; its owner only reads it
    batchrun_insight   where a run's time went, one text a run
    batchrun_schedule  when each scheduled job was last started, and who leads the loop that starts them
    batchrun_meta      the layout's version

Everything is TEXT or a number: json and jsonb refuse NaN, NUL and lone surrogates.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    event,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import CreateSchema, CreateTable

from batchrun.database.failures import Meaning, meaning_of, message_of, sqlstate_of
from batchrun.errors import ConfigError, DatabaseError

LAYOUT = 2
"""The version of this layout; a ledger of a newer one is refused, nothing changed."""

CREATION_LOCK = 7317251120260
"""PostgreSQL: the advisory lock of whoever creates or upgrades a ledger."""

TABLE_PREFIX = "batchrun_"
_NAMES = ("run", "chunk", "payload", "item", "request", "insight", "schedule", "meta")


@dataclass(frozen=True, slots=True)
class Tables:
    """The eight tables, in one schema or in the default one."""

    metadata: MetaData
    run: Table
    chunk: Table
    payload: Table
    item: Table
    request: Table
    insight: Table
    schedule: Table
    meta: Table
    schema: str | None

    @property
    def added(self) -> tuple[Table, ...]:
        """What layout 2 has more than layout 1."""
        return self.request, self.insight, self.schedule


def tables(schema: str | None = None) -> Tables:
    """Describe the tables. ``schema``: None = the connection's default schema."""
    metadata = MetaData(schema=schema)
    return Tables(
        metadata, _run(metadata), _chunk(metadata), _payload(metadata), _item(metadata), _request(metadata), _insight(metadata),
        _schedule(metadata), _meta(metadata), schema,
    )  # fmt: skip


# Leaves room for each mark's new row version to stay on its page (HOT), so that no index grows.
_HALF_FULL: DDL = DDL("ALTER TABLE %(fullname)s SET (fillfactor = 50)")  # type: ignore[no-untyped-call]


def _run(metadata: MetaData) -> Table:
    return Table(
        "batchrun_run",
        metadata,
        Column("id", Text, primary_key=True),
        Column("job", Text, nullable=False),
        Column("name", Text, unique=True),
        Column("status", Text, nullable=False),
        Column("token", Text, nullable=False),
        Column("epoch", Integer, nullable=False),
        Column("heartbeat", Double, nullable=False),
        Column("owner", Text, nullable=False),
        Column("next_no", Integer, nullable=False),
        Column("cursor", Text),
        Column("bound", Text),
        Column("fingerprint", Text, nullable=False),
        Column("sealed", Boolean, nullable=False),
        Column("params", Text, nullable=False),
        Column("options", Text, nullable=False),
        Column("guarantee", Text, nullable=False),
        Column("workers", Integer, nullable=False),
        Column("total", BigInteger),
        Column("started", Double, nullable=False),
        Column("ended", Double),
        Column("elapsed", Double, nullable=False),
        Column("note", Text, nullable=False),
    )


def _chunk(metadata: MetaData) -> Table:
    made = Table(
        "batchrun_chunk",
        metadata,
        Column("run", Text, primary_key=True),
        Column("no", Integer, primary_key=True, autoincrement=False),
        Column("epoch", Integer, nullable=False),
        Column("size", Integer, nullable=False),
        Column("pos", Integer, nullable=False, default=0, server_default="0"),
        Column("skipped", Integer, nullable=False, default=0, server_default="0"),
        Column("deaths", Integer, nullable=False, default=0, server_default="0"),
        Column("first", Text),
        Column("last", Text),
        Column("frontier", Text),
        Column("open", Boolean, nullable=False),
    )
    event.listen(made, "after_create", _HALF_FULL.execute_if(dialect="postgresql"))
    return made


def _payload(metadata: MetaData) -> Table:
    return Table(
        "batchrun_payload",
        metadata,
        Column("run", Text, primary_key=True),
        Column("no", Integer, primary_key=True, autoincrement=False),
        Column("items", Text, nullable=False),
    )


def _item(metadata: MetaData) -> Table:
    return Table(
        "batchrun_item",
        metadata,
        Column("run", Text, primary_key=True),
        Column("no", Integer, primary_key=True, autoincrement=False),
        Column("pos", Integer, primary_key=True, autoincrement=False),
        Column("epoch", Integer, nullable=False),
        Column("payload", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("attempts", Integer, nullable=False, default=0),
        Column("base", Integer, nullable=False, default=0, server_default="0"),
        Column("deaths", Integer, nullable=False, default=0),
        Column("due", Double),
        Column("class", Text, nullable=False, default=""),
        Column("sqlstate", Text),
        Column("message", Text, nullable=False, default=""),
    )


def _request(metadata: MetaData) -> Table:
    """wanted: "pause", "cancel" or "". tuned: JSON of options changed while it runs. asked: when, by the server's clock."""
    return Table(
        "batchrun_request",
        metadata,
        Column("run", Text, primary_key=True),
        Column("wanted", Text, nullable=False, default="", server_default=""),
        Column("tuned", Text, nullable=False, default="{}", server_default="{}"),
        Column("asked", Double, nullable=False),
        Column("asked_by", Text, nullable=False, default="", server_default=""),
    )


def _insight(metadata: MetaData) -> Table:
    """data: batchrun.insight.Insight as JSON."""
    return Table(
        "batchrun_insight",
        metadata,
        Column("run", Text, primary_key=True),
        Column("epoch", Integer, nullable=False),
        Column("data", Text, nullable=False),
    )


def _schedule(metadata: MetaData) -> Table:
    """job: "" is the loop's own row. fired: the firing last dealt with. token, owner, heartbeat: who leads the loop."""
    return Table(
        "batchrun_schedule",
        metadata,
        Column("job", Text, primary_key=True),
        Column("fired", Double),
        Column("token", Text, nullable=False, default="", server_default=""),
        Column("owner", Text, nullable=False, default="", server_default=""),
        Column("heartbeat", Double, nullable=False, default=0.0, server_default="0"),
    )


def _meta(metadata: MetaData) -> Table:
    return Table("batchrun_meta", metadata, Column("layout", Integer, primary_key=True, autoincrement=False))


def ddl(dialect_name: str, schema: str | None = None) -> str:
    """The statements that make the ledger, for a person to run."""
    from sqlalchemy.dialects import postgresql, sqlite  # every worker would pay for both, and needs one at most

    known = tables(schema)
    dialect = sqlite.dialect() if dialect_name == "sqlite" else postgresql.dialect()  # type: ignore[no-untyped-call]
    made = [str(CreateTable(table).compile(dialect=dialect)).strip() + ";" for table in known.metadata.sorted_tables]
    if dialect_name != "sqlite":
        made.append(str(_HALF_FULL.against(known.chunk).compile(dialect=dialect)) + ";")
    layout = insert(known.meta).values(layout=LAYOUT).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    head = [f"CREATE SCHEMA IF NOT EXISTS {dialect.identifier_preparer.quote(schema)};"] if schema else []
    return "\n\n".join([*head, *made, f"{layout};"]) + "\n"


def ensure(engine: Engine, schema: str | None = None) -> Tables:
    """Return the ledger's tables, made if they are not there yet.

    Raises ConfigError when the ledger is of a newer layout, DatabaseError with the exact DDL and GRANT when
    this role may not create it.
    """
    known = tables(schema)
    if schema and engine.dialect.name == "sqlite":
        raise ConfigError(f"[ledger] schema: {schema!r} was given, but SQLite has no schemas; leave it out.")
    try:
        if exists(engine, known):
            check_layout(engine, known)
            return known
    except SQLAlchemyError as error:
        raise DatabaseError(f"The ledger's tables cannot be read: {message_of(error)}. {_by_hand(engine, schema)}") from None
    _create(engine, known)
    return known


def exists(engine: Engine, known: Tables) -> bool:
    """Whether the ledger's tables are there."""
    with engine.connect() as connection:
        return _has_meta(connection, known)


def _has_meta(connection: Connection, known: Tables) -> bool:
    """Not by SQLAlchemy's has_table(): on PostgreSQL it keeps the dialects of the last 128 engines, and each run has its own."""
    if connection.dialect.name == "sqlite":
        return inspect(connection).has_table(known.meta.name)
    name = connection.dialect.identifier_preparer.format_table(known.meta)
    return connection.scalar(select(func.to_regclass(name))) is not None


def check_layout(engine: Engine, known: Tables) -> None:
    """Raises ConfigError when the ledger is not of this layout."""
    with engine.connect() as connection:
        found = connection.execute(select(known.meta.c.layout)).scalars().first()
    if found is not None and found != LAYOUT:
        newer = "install a batchrun that knows it" if found > LAYOUT else "run: batchrun ledger upgrade"
        raise ConfigError(
            f"The ledger in this database has layout {found}, this batchrun knows layout {LAYOUT}; nothing was changed. "
            f"To go on, {newer}, or point [ledger] schema at another schema."
        )


def _create(engine: Engine, known: Tables) -> None:
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # two first runs at once: one makes the tables, one waits
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CREATION_LOCK})")
            if _has_meta(connection, known):
                return
            if known.schema:
                connection.execute(CreateSchema(known.schema, if_not_exists=True))
            known.metadata.create_all(connection, checkfirst=False)
            connection.execute(insert(known.meta).values(layout=LAYOUT))
    except DBAPIError as error:
        if engine.dialect.name == "sqlite" and exists(engine, known):
            return  # another first run was quicker
        if meaning_of(error, is_lost=False, retry_on=()) in (Meaning.RETRY, Meaning.CONFLICT):
            raise  # another first run is about to: cron starts several jobs at once
        if (sqlstate_of(error) or "") not in ("42501", "25006", "3F000") and engine.dialect.name == "postgresql":
            raise
        raise DatabaseError(
            f"The ledger's tables are not there and cannot be created: {message_of(error)}. {_by_hand(engine, known.schema)}"
        ) from None


def _by_hand(engine: Engine, schema: str | None) -> str:
    role = engine.url.username or "this_role"
    place = f"{schema}." if schema else ""
    names = ", ".join(f"{place}{TABLE_PREFIX}{name}" for name in _NAMES)
    usage = f"\nGRANT USAGE ON SCHEMA {schema} TO {role};" if schema else ""
    return (
        "Have somebody who may do so run this, once:\n\n"
        + ddl(engine.dialect.name, schema)
        + f"\nGRANT SELECT, INSERT, UPDATE, DELETE ON {names} TO {role};"
        + usage
    )
