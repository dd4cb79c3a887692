"""What is measured: workloads, each with its lanes, and what batchrun is to reach in it.

A lane is one way to do a workload's items: a peer with a setting. Where a peer cuts its input into chunks, its best chunk
size is searched in a round before the first, of the sizes given here; chunk 1 of multiprocessing.Pool is what people write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ALONE, FURTHER = "-alone", 8
"""The end of a lane's key, and how many more workers the lane beside it starts."""
BEST = "best peer"
"""Stands for the lane of the quickest tuned peer, whichever it turns out to be."""


@dataclass(frozen=True)
class Lane:
    """One way. key: unique in its workload. title: for people; "" = the peer's. task, workers: if not the workload's.

    options: the peer's setting. search: settings of which the quickest is taken; none = ``options`` are the setting.
    is_peer: may be the best peer; else it is batchrun, a floor, or what people write. share: of the workload's items,
    where this way is so slow that all of them would only take long.
    """

    key: str
    peer: str
    title: str = ""
    task: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    search: tuple[dict[str, Any], ...] = ()
    is_peer: bool = False
    share: float = 1.0
    workers: int | None = None


@dataclass(frozen=True)
class Goal:
    """What a lane of batchrun is to reach against another lane, as a ratio of items a second. stretch: what is hoped for."""

    lane: str
    against: str
    at_least: float
    stretch: float | None = None

    def text(self) -> str:
        hoped = f" (stretch {self.stretch:g})" if self.stretch else ""
        return f"≥ {self.at_least:g} x {self.against}{hoped}"


@dataclass(frozen=True)
class Limit:
    """What a figure of a lane of batchrun is to keep to. text: for people."""

    lane: str
    figure: str
    text: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Workload:
    """One table of the report.

    items, quick: how many, and how many with --quick. lean: lanes that may need no round trip more than the best peer.
    figures: what is shown instead of speed, ratios and CPU: (key, title). round_trips: they are counted.
    round_trip_ms: of a network that is put before the server; 0 = none. workers: None = as many as asked for.
    search_share: of the items, in the search for settings: all where a trial is short, or large chunks would not pay in it.
    """

    key: str
    title: str
    task: str
    items: int
    quick: int
    lanes: tuple[Lane, ...]
    goals: tuple[Goal, ...] = ()
    limits: tuple[Limit, ...] = ()
    lean: tuple[str, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    round_trips: bool = False
    round_trip_ms: float = 0.0
    workers: int | None = None
    search_share: float = 0.25


def pools(chunks: tuple[int, ...], *, slow_share: float = 1.0, auto: bool = True) -> tuple[Lane, ...]:
    """The peers on processes, each with its chunk size searched, after the pool as people write it."""
    sizes = tuple({"chunk": chunk} for chunk in chunks)
    lazy = tuple({"chunk": chunk, "lazy": True} for chunk in chunks)
    return (
        Lane("pool-1", "pool", "mp.Pool, chunk 1", options={"chunk": 1}, share=slow_share),
        Lane("pool", "pool", search=(*sizes, *lazy[:1]), is_peer=True),
        Lane("ppe", "ppe", search=sizes, is_peer=True),
        Lane("loky", "loky", search=sizes, is_peer=True),
        Lane("joblib", "joblib", search=({"chunk": "auto"}, *sizes[-2:]) if auto else sizes, is_peer=True),
        Lane("mpire", "mpire", search=sizes, is_peer=True),
        Lane("pebble", "pebble", search=sizes, is_peer=True),
    )


def ours(key: str, title: str, *, task: str = "", share: float = 1.0, **options: Any) -> Lane:
    """A lane of batchrun; ``name=True`` records the run, under a name of its own."""
    return Lane(key, "batchrun", title, task=task, options=options, share=share)


def starts(key: str, peer: str, title: str, options: dict[str, Any]) -> tuple[Lane, Lane]:
    """One worker alone, and then with as many more that what each further one takes can be told."""
    return (
        Lane(f"{key}{ALONE}", peer, f"{title}, 1 worker", options=options, workers=1),
        Lane(key, peer, f"{title}, {1 + FURTHER} workers", options=options, workers=1 + FURTHER),
    )


ORM_CHUNKS = (20, 100)

WORKLOADS = {
    workload.key: workload
    for workload in (
        Workload(
            "noop", "no-op, over integers", "noop", 200_000, 4_000,
            (*pools((200, 1000, 5000), slow_share=0.25), ours("ours", "batchrun")),
            (Goal("ours", BEST, 1.3), Goal("ours", "pool-1", 100)), search_share=1.0,
        ),
        Workload(
            "1kib", "1 KiB each way", "echo", 40_000, 1_000,
            (*pools((20, 100, 500), slow_share=0.5), ours("ours", "batchrun", results=True)),
            (Goal("ours", BEST, 4),), search_share=1.0,
        ),
        Workload(
            "orm-read", "ORM read by key, a Session an item", "orm_read", 12_000, 200,
            (*pools(ORM_CHUNKS), ours("ours", "batchrun"), ours("ours-read-only", "batchrun, read_only=True", read_only=True)),
            (Goal("ours", BEST, 1.0, 1.1), Goal("ours-read-only", BEST, 1.25)), round_trips=True,
        ),
        Workload(
            "orm-write", "ORM read and update, a commit an item", "orm_write", 6_000, 200,
            (
                *pools(ORM_CHUNKS),
                ours("ours", "batchrun, anonymous"),
                ours("ours-named", "batchrun, exactly once", name=True),
                ours("ours-chunk", "batchrun, chunk, exactly once", name=True, transaction="chunk"),
                ours("ours-batched", "batchrun, batched, exactly once", task="orm_write_batched", name=True, batched=True),
            ),
            (
                Goal("ours", BEST, 1.0, 1.1), Goal("ours", "pool-1", 1.5),
                Goal("ours-named", BEST, 0.97, 1.05), Goal("ours-named", "pool-1", 1.3),
                Goal("ours-chunk", "pool-1", 2.5), Goal("ours-chunk", BEST, 1.7),
                Goal("ours-batched", "pool-1", 10),
            ), lean=("ours-named",), round_trips=True,
        ),
        Workload(
            "driver", "driver-level task, no ORM", "driver_write", 12_000, 200,
            (
                Lane("pool-1", "pool", "mp.Pool, chunk 1", options={"chunk": 1}),
                Lane("pool", "pool", search=tuple({"chunk": chunk} for chunk in ORM_CHUNKS), is_peer=True),
                Lane("raw", "raw"),
                Lane("pgbench", "pgbench", options={"marked": False}),
                Lane("pgbench-mark", "pgbench", "pgbench, with the mark", options={"marked": True}),
                ours("ours-named", "batchrun, exactly once", name=True),
                ours("ours-chunk", "batchrun, chunk, exactly once", name=True, transaction="chunk"),
            ),
            (Goal("ours-named", "pgbench-mark", 0.85),), round_trips=True,
        ),
        Workload(
            "latency", "ORM read and update over a network of 1 ms a round trip", "orm_write", 1_000, 100,
            (
                Lane("pool-1", "pool", "mp.Pool, chunk 1", options={"chunk": 1}),
                Lane("pool", "pool", search=tuple({"chunk": chunk} for chunk in ORM_CHUNKS), is_peer=True),
                ours("ours-named", "batchrun, exactly once", name=True),
                ours("ours-chunk", "batchrun, chunk, exactly once", name=True, transaction="chunk"),
            ), round_trip_ms=1.0,
        ),
        Workload(
            "memory", "memory of the parent, over integers", "noop", 2_000_000, 20_000,
            (
                Lane("pool", "pool-stream", "mp.Pool, imap_unordered", options={"chunk": 1000}),
                Lane("pool-stalled", "pool-stream", "mp.Pool, the caller stalls", options={"chunk": 1000, "stall": True}),
                ours("ours", "batchrun, run_parallel"),
                Lane("ours-stream", "batchrun-stream", "batchrun, iter_parallel"),
                Lane("ours-stalled", "batchrun-stream", "batchrun, the caller stalls", options={"stall": True}),
            ),
            limits=(
                Limit("ours", "growth_mb", "≤ 20 MB", at_most=20), Limit("ours-stream", "growth_mb", "≤ 20 MB", at_most=20),
                Limit("ours-stalled", "growth_mb", "≤ 20 MB", at_most=20),
            ),
            figures=(("growth_mb", "peak growth, MB"),),
        ),
        Workload(
            "start", "start of workers, with SQLAlchemy, an engine each", "orm_read", 90, 90,
            (
                *starts("fork", "pool", "mp.Pool", {"chunk": 1, "start": "fork"}),
                *starts("spawn", "pool", "mp.Pool", {"chunk": 1, "start": "spawn"}),
                *starts("forkserver", "pool", "mp.Pool", {"chunk": 1, "start": "forkserver"}),
                *starts("ours", "batchrun", "batchrun", {}),
            ),
            limits=(Limit("ours", "next_ms", "≤ 30 ms for each further worker", at_most=30),),
            figures=(("ready_ms", "until all are ready, ms"), ("next_ms", "each further one, ms")),
        ),
        Workload(
            "threads", "threads: 20 ms of waiting an item", "wait", 16_000, 320,
            (
                *(ours(f"threads-{n}", f"batchrun, {n} threads", threads=n, share=n / 32) for n in (1, 8, 32)),
                ours("database", "batchrun, 16 threads, pg_sleep", threads=16, task="wait_for_server", share=0.5),
            ),
            limits=tuple(
                Limit(lane, "of_ideal", "≥ 0.9 of workers x threads / 20 ms", at_least=0.9)
                for lane in ("threads-1", "threads-8", "threads-32", "database")
            ),
            figures=(("rate", "items/s"), ("of_ideal", "of workers x threads / 20 ms")),
        ),
        Workload(
            "mixed", "1 item of 100 is 1,000 times slower (0.5 ms, 0.5 s)", "mixed", 4_000, 400,
            (
                Lane("pool-1", "pool", "mp.Pool, chunk 1", options={"chunk": 1, "lazy": True}),
                Lane("pool", "pool", "mp.Pool", search=tuple({"chunk": chunk, "lazy": True} for chunk in (10, 50)), is_peer=True),
                ours("ours", "batchrun"),
            ),
            limits=(Limit("ours", "idle_s", "≤ 1 s", at_most=1.0),),
            figures=(("rate", "items/s"), ("idle_s", "first worker idle at the end, s")), workers=4,
        ),
        Workload(
            "queues", "ORM read and update, a commit an item: queues", "orm_write", 3_000, 100,
            (
                Lane("pool-1", "pool", "mp.Pool, chunk 1", options={"chunk": 1}),
                Lane("dask-50", "dask", "Dask, batches by hand", options={"chunk": 50}),
                Lane("ray-50", "ray", "Ray, chunks", options={"chunk": 50}),
                Lane("dask", "dask", "Dask, a future an item", options={"chunk": 1}, is_peer=True),
                Lane("ray", "ray", "Ray, a call an item", options={"chunk": 1}, is_peer=True),
                Lane("celery", "celery", search=({"prefetch": 4}, {"prefetch": 128}), is_peer=True),
                Lane("dramatiq", "dramatiq", search=({"threads": 1}, {"threads": 8}), is_peer=True),
                Lane("huey", "huey", is_peer=True),
                Lane("procrastinate", "procrastinate", is_peer=True),
                Lane("rq", "rq", is_peer=True),
                ours("ours-named", "batchrun, exactly once", name=True),
            ),
            (Goal("ours-named", BEST, 1.5),),
        ),
    )
}  # fmt: skip
"""In the order of the report. The keys are what ``--only`` takes."""
