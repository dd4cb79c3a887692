"""What a scenario is played in: a database, a chance, a size, and the judge at the end.

A story starts a run, in this process (``under_chaos``) or as a program of its own (``programs.py``), strikes it
``world.strikes`` times, and has the judge look at what is left. Everything random comes from ``world.chance``.

Workers import this module for the tasks in it, and for those of scenarios: what only the parent needs is imported late.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url, text

from tests.chaos.scenario import Scenario
from tests.postgres import Server
from tests.support import leaks, oracle
from tests.support.databases import Clones, engine_for
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from batchrun import Outcome, Report
    from batchrun.events import Event

PASSWORD = "pa55-of-the-chaos-suite"
"""Part of every PostgreSQL URL here; the server trusts everybody, and no output may show it."""

RUN = "chaos"


@dataclass
class World:
    """One scenario, once. slack: bounds on time are met within so many times their length: 3 in the suite, 1 for the table.

    figures: what the table shows; numbers are added up over several plays, those whose name begins with "worst" (seconds)
    or "most" are maxima.
    """

    scenario: Scenario
    database: str
    url: str
    factor: float
    slack: float
    seed: int
    folder: Path
    server: Server
    clones: Clones
    is_soak: bool = False
    figures: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed} {self.scenario.name} {self.database}")

    @property
    def strikes(self) -> int:
        """How often the fault is to strike."""
        return self.scenario.strikes(self.factor)

    @property
    def is_sqlite(self) -> bool:
        return self.database == "sqlite"

    def accounts(self, count: int) -> range:
        """Make the oracle's tables with so many accounts, and no effect. Returns the items."""
        items = range(count)
        oracle.create(self.url, items)
        return items

    def struck(self, what: str, times: int = 1) -> None:
        """Count a strike, by name: "worker kills"."""
        self.figures[what] += times

    def within(self, took_s: float, bound_s: float, what: str) -> None:
        """Assert a bound on time, and keep the longest for the table."""
        self.figures[f"worst {what}"] = max(self.figures[f"worst {what}"], round(took_s, 3))  # type: ignore[assignment]
        assert took_s <= bound_s * self.slack, f"{what} took {took_s:.2f} s; the bound is {bound_s:g} s x {self.slack:g}"

    def within_memory(self, grown_mb: float, what: str, bound_mb: float = 50.0) -> None:
        """Assert a bound on memory, whatever the slack, and keep the most for the table."""
        self.figures[f"worst {what} in MB"] = max(self.figures[f"worst {what} in MB"], round(grown_mb, 1))  # type: ignore[assignment]
        assert grown_mb < bound_mb, f"{what}: {grown_mb:.1f} MB; the bound is {bound_mb:g} MB"

    def said(self, *texts: str) -> None:
        """Keep what a person would see: no secret may be in it."""
        self.texts += texts

    def judge(
        self, items: range, *, run: str = RUN, partly: Collection[int] = (), skipped: Collection[int] = (), failed: int = 0,
        quarantined: Collection[int] = (),
    ) -> oracle.Books:  # fmt: skip
        """The oracle, after the run has ended: data and ledger agree, both ways, and nothing of ours is left.

        failed: how many items may be listed as failed or unknown. quarantined: exactly these.
        """
        ledger = oracle.assert_exactly_once(self.url, run, items, partly=partly, skipped=skipped)
        assert ledger.of("quarantined") == set(quarantined)
        wrong = ledger.of("failed", "unknown")
        assert len(wrong) <= failed, {item: ledger.messages[item] for item in sorted(wrong)[:5]}
        self.figures["items"] += len(items)
        self.judge_leftovers()
        return ledger

    def judge_leftovers(self) -> None:
        """No process, session, advisory lock or file of ours is left, and no secret was shown."""
        leaks.check_processes([self.server.pid])
        if self.is_sqlite:
            name = Path(make_url(self.url).database or "").name
            stray = [path.name for path in self.folder.iterdir() if path.name.startswith(name) and "batchrun" in path.name]
            assert not stray, f"lock files are left: {stray}"
        else:
            name = make_url(self.url).database or ""
            self.clones.check_sessions(name)
            locks = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database WHERE datname = %s"
            assert self.clones.execute(f"{locks} AND locktype = 'advisory'", name) == [(0,)]
        assert not any(PASSWORD in one for one in self.texts), "the password was shown"


# ------------------------------------------------------------------------------------------ a run in this process
@dataclass
class Watched:
    """A run of this process while chaos is done to it.

    arrivals: when each outcome came; starts: (worker's pid, when it began an item), where the task returns that.
    """

    world: World
    outcomes: list[Outcome] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    is_over: bool = False

    @property
    def settled(self) -> int:
        return len(self.outcomes)

    def carry_out(self, task: Any, items: Iterable[Any], database: Any = None, **options: Any) -> None:
        """Carry the run out, and keep its outcomes."""
        from batchrun import iter_parallel

        settings = {"name": RUN, "workers": 2, **options}
        outcomes: Any = iter_parallel(task, items, database or self.world.url, **settings)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                self.outcomes.append(outcome)
                self.arrivals.append(time.monotonic())

    def wait_for(self, settled: int, timeout_s: float = 60.0) -> None:
        """Wait until so many items are settled, or the run is over."""
        wait_until(lambda: self.is_over or self.settled >= settled, timeout_s, every_s=0.002, what=f"{settled} items are settled")

    def workers(self) -> list[int]:
        """The pids of living workers, the oldest first."""
        return worker_pids(os.getpid())

    def one_worker(self) -> int:
        """A worker by chance; waits for one to be there."""
        found: list[int] = []

        def there_is_one() -> bool:
            found[:] = self.workers()
            return bool(found) or self.is_over

        wait_until(there_is_one, 20.0, every_s=0.002)
        assert found, "the run is over"
        return self.world.chance.choice(found)

    def starts(self) -> list[tuple[int, float]]:
        """(pid, begun) of every item that is done, from tasks that return that."""
        return [one.value for one in list(self.outcomes) if one.value is not None]


def slow(session: Any, item: int, ctx: Any) -> None:
    """The oracle's task, 10 ms an item, inside its transaction."""
    oracle.work(session, item, ctx.attempt)
    time.sleep(0.01)  # work


def timed(session: Any, item: int, ctx: Any) -> tuple[int, float]:
    """The oracle's task; says who ran it and when it began, on the clock that all processes of a machine share."""
    begun = time.monotonic()
    oracle.work(session, item, ctx.attempt)
    time.sleep(0.002)  # work
    return os.getpid(), begun


def carried_out(world: World, task: Any, items: Iterable[Any], **options: Any) -> Watched:
    """Carry a run out in this process; the task itself brings the chaos."""
    watched = Watched(world)
    watched.carry_out(task, items, **options)
    return watched


@contextlib.contextmanager
def struck_by(chaos: Callable[[Any], None], watched: Watched) -> Iterator[None]:
    """``chaos`` strikes from a thread while the block runs. What it raised ends the block, as Ctrl-C would, and is raised."""
    errors: list[BaseException] = []

    def strike() -> None:
        try:
            chaos(watched)
        except BaseException as error:
            errors.append(error)
            if not watched.is_over:
                _thread.interrupt_main()  # the run may wait for ever for what chaos has not brought back

    thread = threading.Thread(target=strike, name="chaos", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not errors:
            raise
    finally:
        watched.is_over = True
        thread.join(60)
    if errors:
        raise errors[0]
    assert not thread.is_alive(), "chaos did not come to its end"


def under_chaos(
    world: World, task: Any, items: Iterable[int], chaos: Callable[[Watched], None], *, database: Any = None, **options: Any
) -> Watched:
    """Carry a run out in this process while ``chaos`` strikes it from a thread. Raises what either of them raised.

    database: another way to the world's own, such as an engine, or a URL where something is in between.
    """
    watched = Watched(world)
    with struck_by(chaos, watched):
        watched.carry_out(task, items, database, **options)
    return watched


@dataclass
class Told(Watched):
    """A run opened as the command line does it, which tells what it notices, but not what became of single items.

    steps: (when, how many items were settled by then). notices: what a person would read.
    """

    is_open: bool = False
    steps: list[tuple[float, int]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    report: Report | None = None

    def __call__(self, event: Event) -> None:
        from batchrun.events import Notice, Progressed, RunOpened

        if isinstance(event, RunOpened):
            self.is_open = True
        elif isinstance(event, Notice):
            self.notices.append(event.text)
        elif isinstance(event, Progressed) and event.counts.settled > self.settled:
            self.steps.append((time.monotonic(), event.counts.settled))

    @property
    def settled(self) -> int:
        return self.steps[-1][1] if self.steps else 0

    @property
    def run(self) -> str:
        assert self.report is not None
        return self.report.run

    def first_after(self, at: float) -> float:
        """How long after that moment the next item was settled, in seconds."""
        return min((when for when, _ in self.steps if when > at), default=float("inf")) - at


def told_under_chaos(
    world: World, task: Any, items: range, chaos: Callable[[Told], None], *, database: Any = None, **options: Any
) -> Told:
    """The same with a run that tells its notices; they are kept for the judge of secrets."""
    from batchrun.api import Place, start_job
    from batchrun.jobs import Job
    from batchrun.options import RunOptions, with_options

    told = Told(world)
    job = Job("chaos", task, items=lambda: items)
    place = Place(database or world.url, world.folder)
    given = with_options(RunOptions(), {"workers": 2, **options})
    try:
        with struck_by(chaos, told):
            told.report = start_job(job, {}, given, place, observers=(told,), captures_output=False)
    finally:
        world.said(*told.notices)
    return told


# ------------------------------------------------------------------------------------------ processes and sessions
def children() -> dict[int, list[int]]:
    """Parent -> its living children, the oldest first, of every process of this machine."""
    found: dict[int, list[tuple[int, int]]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    found.setdefault(int(fields[1]), []).append((int(fields[19]), int(folder.name)))
    return {parent: [pid for _, pid in sorted(pids)] for parent, pids in found.items()}


def helper_pids(parent: int, kind: str) -> list[int]:
    """The fork server ("forkserver") or resource tracker ("resource_tracker") of a process."""
    return [pid for pid in children().get(parent, []) if is_helper(pid, kind)]


def is_helper(pid: int, kind: str) -> bool:
    return f"multiprocessing.{kind}" in command_of(pid)


def worker_pids(parent: int) -> list[int]:
    """The workers of a run's parent: under its fork server, or its own children by fork and spawn.

    What has no command line any more is dying, such as a resource tracker that was killed just now.
    """
    below = children()
    found = []
    for pid in below.get(parent, []):
        command = command_of(pid)
        if is_helper(pid, "forkserver"):
            found += below.get(pid, [])
        elif command and not any(other in command for other in ("resource_tracker", "postgres", "pgbouncer")):
            found.append(pid)
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def administration(world: World) -> Iterator[Any]:
    """A connection of the administrator's to the world's own database, in autocommit; PostgreSQL only."""
    with engine_for(world.url).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield lambda statement, **values: connection.execute(text(statement), values)


def by_driver(world: World, url: str) -> str:
    """Another URL, for the driver that the scenario is played with."""
    return make_url(url).set(drivername=make_url(world.url).drivername).render_as_string(hide_password=False)
