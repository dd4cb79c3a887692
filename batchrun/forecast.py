"""How long the whole source would take with 1, 2, 4 and 8 workers, from what a dry run measured.

    orders, as measured    ->  what an item takes in orders of the size that the real run comes to
    + COMMIT               ->  the transactions of the real run, by what a COMMIT cost when it was tried
    workers, cores, locks  ->  items a second

An item's time is split in two: *computing* (the worker's processor time, the parent's share, and the server's where it is on
this machine) and *waiting*. Workers compute beside each other only as far as there are cores; they wait beside each
other as they like. On SQLite it is the one right to write that they share. What comes out is the steady state of the
textbook's "machine repairman": ``customers`` who wait, then queue for one of ``servers``.

The model is then scaled so that it gives, for the dry run's own number of workers, the speed that the dry run had: whatever
else keeps this machine busy is assumed to go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from batchrun.chunks import ChunkSizer
from batchrun.rehearsal import FORECAST_WORKERS, Costs, Expected

MARK_S = 0.00004
"""What a mark adds to a transaction that has to be begun anyway; a dry run has no ledger to try it on."""

CHUNK_S = 0.0005
"""What the database takes to record a chunk and to close it, beside a COMMIT and its bytes."""

BYTE_S = 2e-9
SQLITE_BYTE_S = 3e-8
"""The same for each byte of the chunk's items: SQLite writes them into its log, into its file, and frees them again."""

MOST_CHUNKS = 2000
"""Cut in thought, to see how large they become; behind them all are as large as the last."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the figures depend on beside the costs.

    workers: of the dry run, 0 = inline. threads: in each worker. cores: of this machine. shares_cores: the server computes
    on them as well. one_writer: SQLite, and the run writes. per_item: each item has a transaction of its own. reads: nothing
    is committed. item_bytes: of one, as the ledger holds it until its chunk ends. parent_s: the parent's processor time an
    item. start_s: until the first order began. most: items a chunk may have, if fewer than usual.
    """

    workers: int
    threads: int
    cores: int
    shares_cores: bool
    one_writer: bool
    per_item: bool
    batched: bool
    reads: bool
    parent_s: float
    item_bytes: float
    start_s: float
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """What one item takes, in seconds: wall = cpu + server + waiting; locked: of it, with the right to write."""

    wall: float
    cpu: float
    server: float
    locked: float

    @property
    def waiting(self) -> float:
        return max(0.0, self.wall - self.cpu - self.server)


def expected(costs: Costs, setting: Setting, whole: int | None) -> list[Expected]:
    """The forecast for each of ``FORECAST_WORKERS``; empty where too little was measured."""
    if not costs.wall.items:
        return []
    slowness = _slowness(costs, setting)
    made = []
    for workers in FORECAST_WORKERS:
        size = chunk_size(costs.wall.at, setting, workers, whole)
        item = _with_commit(_item(costs, setting, size), costs.commit_s or 0.0, size, setting)
        per_s = speed(item, setting, workers) / slowness
        start_s = setting.start_s + _warming(costs)
        made.append(Expected(workers, per_s, None if whole is None else start_s + whole / per_s))
    return made


def _item(costs: Costs, setting: Setting, size: float) -> Item:
    wall, cpu = costs.wall.at(size), costs.cpu.at(size)
    if costs.is_server_seen:
        server = costs.server.at(size)
    elif setting.shares_cores and not setting.one_writer:
        server = max(0.0, wall - cpu)  # not visible: as if it computed all the time
    else:
        server = 0.0
    return Item(max(wall, cpu), cpu, server if setting.shares_cores else 0.0, min(wall, costs.locked.at(size)))


def _with_commit(item: Item, commit_s: float, size: float, setting: Setting) -> Item:
    """What the real run has beside the dry run: marks, and COMMIT instead of ROLLBACK."""
    transactions = 1.0 if setting.per_item and not setting.reads else 1.0 / size
    more = transactions * (commit_s + MARK_S)
    if setting.one_writer:  # who has to wait while the parent writes
        ledger = (CHUNK_S + commit_s) / size + setting.item_bytes * SQLITE_BYTE_S
        return Item(item.wall + more + ledger, item.cpu, 0.0, item.locked + more + ledger)
    ledger = CHUNK_S / size + setting.item_bytes * BYTE_S  # by the server, beside the workers
    server = ledger if setting.shares_cores else 0.0
    return Item(item.wall + more + server, item.cpu, item.server + server, item.locked)


def _slowness(costs: Costs, setting: Setting) -> float:
    """How much longer the dry run took than the model has it: what else this machine does. At least 1."""
    size = costs.wall.items / costs.wall.orders
    measured_s = costs.wall.at(size) + costs.queued.at(size) + costs.waited.at(size)
    here = setting if setting.workers else replace(setting, workers=1, threads=1)
    customers = here.workers * here.threads
    modelled = speed(_item(costs, setting, size), here, here.workers)
    return max(1.0, modelled * measured_s / customers) if measured_s > 0 else 1.0


def _warming(costs: Costs) -> float:
    """What a worker's first order takes longer than others: connecting, importing, filling caches."""
    if not costs.first_s:
        return 0.0
    mean = costs.wall.sum / costs.wall.items
    return sum(max(0.0, wall_s - items * mean) for items, wall_s in costs.first_s) / len(costs.first_s)


def speed(item: Item, setting: Setting, workers: int) -> float:
    """Items a second with so many workers."""
    customers = workers * setting.threads
    computing = item.cpu + item.server
    if setting.one_writer:
        found = repaired(customers, max(0.0, item.wall - item.locked), item.locked, 1)
    else:
        found = repaired(customers, item.waiting, computing, setting.cores)
    if setting.parent_s > 0:  # it works ahead of the workers, so it costs none of them time but where all cores are busy
        found = min(found, 1 / setting.parent_s)
    if computing + setting.parent_s > 0:
        found = min(found, setting.cores / (computing + setting.parent_s))
    if item.cpu > 0:
        found = min(found, workers / item.cpu)  # Python computes on one core a process, however many threads there are
    return found


def repaired(customers: int, think_s: float, service_s: float, servers: int) -> float:
    """Customers a second that are served where each thinks for a while and then queues for one of the servers."""
    if service_s <= 0:
        return customers / max(think_s, 1e-9)
    if think_s <= 0:
        return min(customers, servers) / service_s
    weight = total = 1.0
    busy = 0.0
    for there in range(1, customers + 1):
        weight *= (customers - there + 1) * (service_s / think_s) / min(there, servers)
        if weight > 1e200:  # nearly all of them queue
            return min(customers, servers) / service_s
        total += weight
        busy += weight * min(there, servers)
    return busy / total / service_s


def chunk_size(per_item_s: Callable[[float], float], setting: Setting, workers: int, whole: int | None) -> float:
    """How many items the chunks of the real run will have on average."""
    sizer = ChunkSizer(workers * setting.threads, has_database=True, batched=setting.batched, most=setting.most)
    left = 10**6 if whole is None else whole
    chunks = items = size = 0
    while left > 0 and chunks < MOST_CHUNKS:
        size = min(left, sizer.size(left))
        sizer.learn(size, size * per_item_s(size))
        chunks, items, left = chunks + 1, items + size, left - size
    return (items + left) / (chunks + left / size) if size else 1.0


def computed_by(item: Item, setting: Setting) -> str:
    """What bounds the speed however many workers there are, in a sentence."""
    computing = item.cpu + item.server + setting.parent_s
    if setting.one_writer:
        share = item.locked / max(item.wall, 1e-9)
        return f"SQLite has one writer at a time, and an item holds that right for {share:.0%} of its time"
    share = computing / max(item.wall, 1e-9)
    cores = f"{setting.cores} core{'' if setting.cores == 1 else 's'}"
    return (
        f"an item computes for {min(1.0, share):.0%} of its time, and this machine has {cores}: no more than that compute at once"
    )


def bound_by(costs: Costs, setting: Setting) -> str:
    """The same for what was measured."""
    return computed_by(_item(costs, setting, costs.wall.items / costs.wall.orders), setting) if costs.wall.items else ""
