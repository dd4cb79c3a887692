"""What is examined: the settings, as far as they can be read, and the databases they name, as far as they can be reached.

Nothing here writes: a SQLite file is opened for reading only, which neither makes it nor changes its journal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Engine, NullPool, create_engine

from batchrun.api import Place, place_of
from batchrun.config import Settings, load_settings
from batchrun.database.engines import EngineSpec, control_engine
from batchrun.database.urls import passwords_in, sqlite_file
from batchrun.errors import BatchrunError
from batchrun.loading import install_jobs_package
from batchrun.masking import Redactor

NAME = "batchrun-doctor"


@dataclass(slots=True)
class Patient:
    """One database. label: "database", or "ledger" where that is another one. engine: None where none could be made.

    works, records: whether tasks work here, whether runs are recorded here. error: why it cannot be reached; None = it can.
    """

    label: str
    works: bool
    records: bool
    engine: Engine | None
    error: BaseException | None

    @property
    def is_reached(self) -> bool:
        return self.engine is not None and self.error is None

    @property
    def is_sqlite(self) -> bool:
        return self.engine is not None and self.engine.dialect.name == "sqlite"

    def named(self, check: str) -> str:
        """The name of a check of this database."""
        return check if self.label == "database" else f"{check} ({self.label})"


@dataclass(slots=True)
class Subject:
    """The project as the options of the command line name it. refused: why its settings cannot be read; None = they can."""

    config: str | None = None
    profile: str | None = None
    database_url: str | None = None
    redact: Redactor = field(default_factory=Redactor)
    settings: Settings | None = None
    refused: BatchrunError | None = None
    patients: list[Patient] = field(default_factory=list)

    def __enter__(self) -> Subject:
        self._read()
        self.patients = list(self._databases())
        return self

    def __exit__(self, *_: object) -> None:
        for patient in self.patients:
            if patient.engine is not None:
                patient.engine.dispose()

    @property
    def schema(self) -> str | None:
        return self.settings.ledger.schema if self.settings else None

    def _read(self) -> None:
        overrides: Mapping[str, object] = {} if self.database_url is None else {"database.url": self.database_url}
        try:
            self.settings = load_settings(config=self.config, profile=self.profile, overrides=overrides)
            self.redact.add(*self.settings.secrets)
        except BatchrunError as error:
            self.refused = error

    def _databases(self) -> list[Patient]:
        """Of settings that cannot be read, the URL of the command line alone."""
        if self.settings is None:
            if self.database_url is None:
                return []
            found = Place(self.database_url, folder=Path.cwd())
            return [self._patient("database", found.spec, works=True, records=True)]
        settings = self.settings

        def place() -> Place:
            if settings.database.factory:
                install_jobs_package(settings.folder)
            return place_of(settings)

        made = [self._patient("database", lambda: place().spec(), works=True, records=settings.ledger.url is None)]
        if settings.ledger.url is not None:
            made.append(self._patient("ledger", lambda: _ledger(place()), works=False, records=True))
        return made

    def _patient(self, label: str, spec: Callable[[], EngineSpec], *, works: bool, records: bool) -> Patient:
        engine: Engine | None = None
        try:
            engine = reading_engine(spec())
            self.redact.add(*passwords_in(engine.url))
            if engine.dialect.name != "sqlite" or sqlite_file(engine.url).exists():
                engine.connect().close()
            return Patient(label, works, records, engine, None)
        except Exception as error:  # also what a factory raises, which is the user's own code
            return Patient(label, works, records, engine, error)


def _ledger(place: Place) -> EngineSpec:
    found = place.ledger_spec()
    assert found is not None
    return found


def reading_engine(spec: EngineSpec) -> Engine:
    """An engine that changes nothing."""
    url = spec.url
    if url is None and spec.factory is not None:
        made = spec.factory()
        if made.dialect.name != "sqlite":
            return made
        url = made.url
    if url is not None and url.get_backend_name() == "sqlite":
        address = f"file:{quote(str(sqlite_file(url)))}?mode=ro"
        return create_engine(url, creator=lambda: sqlite3.connect(address, uri=True), poolclass=NullPool)
    return control_engine(spec, application_name=NAME)
