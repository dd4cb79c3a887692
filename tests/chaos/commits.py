"""A connection is cut at the worst moment: is the work committed, or is it not?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import make_url

from tests.chaos.controls import NaivePool
from tests.chaos.scenario import scenario
from tests.chaos.world import World, under_chaos
from tests.support import oracle
from tests.support.proxy import CuttingProxy

PLACES = {
    "before": "cuts before COMMIT arrived",
    "after": "cuts before COMMIT's reply",
    "query": "cuts in a query",
    "connect": "cuts while connecting",
}
MODES: dict[str, dict[str, Any]] = {"item": {}, "chunk": {"transaction": "chunk"}, "batched": {"batched": True}}


def brief(session: Any, given: Any, ctx: Any) -> None:
    """The oracle's task for an item or a list, slow enough that chunks stay small: a cut costs a whole one."""
    for item in given if isinstance(given, list) else [given]:
        oracle.work(session, item, ctx.attempt)
        time.sleep(0.002)  # work


SHARE = {"item": 0.06, "chunk": 0.15, "batched": 0.15}
"""Of the transactions, at each place: so few that no item is likely to be hit ten times in a row, which fails it."""

ENOUGH = 20_000
"""Far more than are taken: the source ends with the last cut. A quick machine makes longer chunks, and so fewer COMMITs."""


@scenario(
    "a proxy cuts the connection: at COMMIT, in a query, while connecting",
    dose=50,
    soak=5000,
    bound="doubled = 0",
    databases=("postgresql", "psycopg3"),
)
def cut(world: World) -> None:
    """The dose is cut at each of the four places, a third of it in each transaction mode; no attempt is counted."""
    each = -(-world.strikes // len(MODES))
    for mode, options in MODES.items():
        taken: list[int] = []
        world.accounts(ENOUGH)

        def source() -> Iterator[int]:
            while not proxy.is_spent and len(taken) < ENOUGH:  # noqa: B023
                taken.append(len(taken))  # noqa: B023
                yield taken[-1]  # noqa: B023

        with CuttingProxy(world.url, tuple(PLACES), most=each, share=SHARE[mode], seed=world.chance.random()) as proxy:
            under_chaos(world, brief, source(), lambda _: None, name=mode, database=proxy.url, retries=0, **options)
        for place, name in PLACES.items():
            world.struck(name, proxy.cuts_at[place])
        assert proxy.is_spent, f"{mode}: only {dict(proxy.cuts_at)}, not {each} each, in {len(taken)} items"
        assert world.judge(range(len(taken)), run=mode).counts.retries == 0


@cut.control
def _(world: World) -> str:
    """A retry doubles what was committed; what is hit twice is lost."""
    named = make_url(world.url).update_query_dict({"application_name": "naive"}).render_as_string(hide_password=False)
    proxy = CuttingProxy(named, tuple(PLACES), most=8, share=0.2, seed=world.seed, only=b"naive")
    with proxy, NaivePool(world, url=proxy.url) as pool:
        return pool.outcome()
