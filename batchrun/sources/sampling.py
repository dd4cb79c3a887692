"""A random sample of a source: so many of its items, or a share of them, the same ones for the same seed.

    500   drawn when the run opens: random keys of a whole-number key, else one pass over the source that keeps 500 items
    1%    a coin for each item as it is read, which depends on the seed and on the item's place in the source alone

Either way every item has the same chance. What was drawn is the run's upper bound, which the ledger keeps, and a coin
falls the same way again: so a run that goes on, goes on with the same sample.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Subquery

from batchrun import codec
from batchrun.errors import BatchrunError, ConfigError, JobError
from batchrun.items import Item
from batchrun.sources.keysets import Keyset
from batchrun.sources.source import Cursor, Reader, Source, SourceContext

MOST_ITEMS = 10_000
"""Drawn items are kept with the run, in one row: more are a share, such as 5%."""

SEEDS = 10**6

_BATCH = 1000
_LEAST_HITS = 0.02
"""Where fewer of the keys that were guessed exist, reading all keys is quicker than guessing on."""

_PATIENCE_S = 1.0
"""How long a share may find nothing before the run's loop is let on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What to draw. count: so many items; percent: or this share of them. seed: the same one draws the same items."""

    count: int | None
    percent: float | None
    seed: int

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent is not None else str(self.count)

    def to_plain(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {"sample": str(self), "seed": self.seed}


def sample_of(text: str, seed: int | None = None) -> Sample:
    """Read ``500`` or ``1%``. seed: None = any. Raises ValueError with what is allowed."""
    written = text.strip()
    seed = random.SystemRandom().randrange(1, SEEDS) if seed is None else seed
    if written.isascii() and written.isdigit() and 1 <= int(written) <= MOST_ITEMS:
        return Sample(int(written), None, seed)
    try:
        percent = float(written[:-1]) if written.endswith("%") else 0.0
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise ValueError(
            f"{text!r} is neither a number of items from 1 to {MOST_ITEMS:,} nor a share above 0%, such as 500 or 1%"
        )
    return Sample(None, percent, seed)


def sample_from(options: Mapping[str, Any]) -> Sample | None:
    """The sample of a run, from the options that the ledger keeps."""
    found = options.get("sample")
    return sample_of(found["sample"], found["seed"]) if isinstance(found, Mapping) else None


class Sampled:
    """A source of which only a sample is read. within: of its first so many items; None = of all."""

    def __init__(self, source: Source, sample: Sample, within: int | None = None) -> None:
        self._source = source
        self._sample = sample
        self._within = within
        self._drawn: list[Item] | None = None
        self._read = 0  # items that were read to draw them; 0 = keys were guessed

    @property
    def accept_changes(self) -> bool:
        """The source's own."""
        return bool(getattr(self._source, "accept_changes", False))

    @accept_changes.setter
    def accept_changes(self, accept: bool) -> None:
        if hasattr(self._source, "accept_changes"):
            self._source.accept_changes = accept

    def describe(self) -> str:
        """Such as ``500 of keyset of orders.id``."""
        return f"{self._sample} of {self._source.describe()}"

    def fingerprint(self, context: SourceContext) -> Mapping[str, str]:
        """The source's, and how the sample was drawn."""
        return {**self._source.fingerprint(context), "sample": f"{self._sample}, seed {self._sample.seed}"}

    def bound(self, context: SourceContext) -> dict[str, Any]:
        """The source's own bound, and the items where they are drawn beforehand; as text where the ledger keeps them."""
        inner = self._source.bound(context)
        if self._sample.count is None:
            return {"bound": inner}
        drawn = self._draw(context, inner)
        return {"bound": inner, "of": self._read, "items": codec.dump_items(drawn) if context.durable else drawn}

    def whole(self, context: SourceContext, bound: Mapping[str, Any]) -> int | None:
        """How many items the source has, or about, without the sample; None where nobody knows."""
        if bound.get("of"):
            return int(bound["of"])
        found = self._source.total(context, bound["bound"])
        return found if self._within is None or found is None else min(found, self._within)

    def total(self, context: SourceContext, bound: Mapping[str, Any]) -> int | None:
        """The size of the sample; of a share about, None where the source's is not known."""
        if self._sample.percent is None:
            return len(_items(bound))
        found = self.whole(context, bound)
        return None if found is None else round(found * self._sample.percent / 100)

    def read(self, context: SourceContext, after: Cursor, upto: Mapping[str, Any]) -> Reader:
        """Open a reader behind ``after``."""
        if self._sample.percent is None:
            return DrawnReader(_items(upto), 0 if after is None else int(after["count"]))
        inner = self._source.read(context, None if after is None else after["at"], upto["bound"])
        return ShareReader(inner, self._sample.percent, self._sample.seed, 0 if after is None else after["seen"], self._within)

    # Drawing.

    def _draw(self, context: SourceContext, bound: Any) -> list[Item]:
        """The sample in the source's order; drawn once, since an iterator gives its items only once."""
        if self._drawn is None:
            count, dice = self._sample.count or 0, random.Random(self._sample.seed)
            if isinstance(self._source, Keyset) and self._within is None and context.engine is not None:
                self._drawn = guessed(self._source, context.engine, bound, count, dice)
            if self._drawn is None:
                self._drawn = self._kept(context, bound, count, random.Random(self._sample.seed))
        return self._drawn

    def _kept(self, context: SourceContext, bound: Any, count: int, dice: random.Random) -> list[Item]:
        """One pass over the source that keeps ``count`` items: the n-th takes the place of a kept one with chance count/n."""
        kept: list[tuple[int, Item]] = []
        reader, seen = self._source.read(context, None, bound), 0
        try:
            while not reader.exhausted and (self._within is None or seen < self._within):
                wanted = _BATCH if self._within is None else min(_BATCH, self._within - seen)
                for item in self._taken(reader, wanted):
                    place = seen if seen < count else dice.randrange(seen + 1)
                    if place < count:
                        kept[place : place + 1] = [(seen, item)]
                    seen += 1
        finally:
            reader.close()
        self._read = seen
        return [item for _, item in sorted(kept, key=lambda one: one[0])]

    def _taken(self, reader: Reader, wanted: int) -> list[Item]:
        try:
            return reader.take(wanted)
        except BatchrunError:
            raise
        except Exception as error:
            if any(kind.__module__.partition(".")[0] == "sqlalchemy" for kind in type(error).__mro__):
                raise
            raise JobError(
                f"The source {self._source.describe()} raised {type(error).__name__} while the sample was drawn from it: {error}"
            ) from error


def _items(bound: Mapping[str, Any]) -> list[Item]:
    found = bound["items"]
    return codec.load_items(found) if isinstance(found, str) else list(found)


def guessed(source: Keyset, engine: Engine, bound: Any, count: int, dice: random.Random) -> list[Item] | None:
    """Items of random keys between the least and the greatest: those that exist, in the order they were guessed.

    Every row has the same chance, and only the index is asked. None where the key is not one whole number, or too few of
    the numbers exist for this to be quick.
    """
    plan = source.plan
    if len(plan.keys) != 1 or bound == [] or isinstance(getattr(plan.keys[0], "table", None), Subquery):
        return None
    key, at = plan.keys[0], plan.key_at[0]
    with engine.connect() as connection:
        first = connection.execute(plan.statement.order_by(key).limit(1)).first()
        if first is None or type(first[at]) is not int or type(bound[0]) is not int:
            return None
        low, high, guesses = first[at], bound[0], set[int]()
        found: dict[int, Item] = {}
        while len(found) < count:
            if len(guesses) * 2 > high - low or (guesses and len(found) < _LEAST_HITS * len(guesses)):
                return None
            numbers = [number for number in (dice.randint(low, high) for _ in range(_BATCH)) if number not in guesses]
            guesses.update(numbers)
            rows = {row[at]: plan.item(row) for row in connection.execute(plan.statement.where(key.in_(set(numbers))))}
            found.update((number, rows[number]) for number in numbers if number in rows)
    return [item for _, item in sorted(list(found.items())[:count], key=lambda one: one[0])]


class DrawnReader:
    """Takes the drawn items."""

    def __init__(self, items: list[Item], count: int) -> None:
        self._items = items
        self._count = count

    @property
    def cursor(self) -> Cursor:
        """``{"count": n}``: how many of the sample were taken."""
        return {"count": self._count}

    @property
    def exhausted(self) -> bool:
        return self._count >= len(self._items)

    def take(self, limit: int, budget_s: float = 0.1) -> list[Item]:
        """As ``Reader.take``."""
        found = self._items[self._count : self._count + max(limit, 0)]
        self._count += len(found)
        return found

    def close(self) -> None:
        """Nothing to let go of."""


class ShareReader:
    """Takes a share of what another reader takes.

    seen: how many items that one took before. within: it is to take no more than so many. Its cursor is the other's, with
    the number of items it took: the coin of each item depends on nothing else.
    """

    def __init__(self, reader: Reader, percent: float, seed: int, seen: int, within: int | None) -> None:
        self._reader = reader
        self._below = int(percent / 100 * 2**64)
        self._key = str(seed).encode()
        self._seen = seen
        self._within = within

    @property
    def cursor(self) -> Cursor:
        """``{"at": the other's cursor, "seen": items it took}``."""
        return {"at": self._reader.cursor, "seen": self._seen}

    @property
    def exhausted(self) -> bool:
        return self._reader.exhausted or self._left() == 0

    def _left(self) -> int:
        return MOST_ITEMS if self._within is None else max(0, self._within - self._seen)

    def take(self, limit: int, budget_s: float = 0.1) -> list[Item]:
        """As ``Reader.take``; where the share is so small that nothing comes for a second, none."""
        found: list[Item] = []
        began = time.monotonic()
        while len(found) < limit and not self.exhausted:
            taken = self._reader.take(min(limit - len(found), self._left()), budget_s)
            found += [item for at, item in enumerate(taken, self._seen) if self._is_in(at)]
            self._seen += len(taken)
            if time.monotonic() - began >= (budget_s if found else _PATIENCE_S):
                break
        return found

    def _is_in(self, at: int) -> bool:
        coin = hashlib.blake2b(at.to_bytes(8, "big"), digest_size=8, key=self._key).digest()
        return int.from_bytes(coin, "big") < self._below

    def close(self) -> None:
        self._reader.close()


def sampled(source: Source, sample: Sample | None, limit: int | None) -> Source:
    """The source, or the sample of it. limit: items the run may plan of the whole source."""
    return source if sample is None else Sampled(source, sample, limit)


def check_alone(sample: str | None, limit: object, seed: object) -> None:
    """--sample, --limit and --seed: which go together. Raises ConfigError."""
    if sample is not None and limit is not None:
        raise ConfigError(
            "--sample and --limit cannot be combined: --limit takes the source's first items, a sample is from all of it. "
            "To bound the sample give its size: --sample 500."
        )
    if seed is not None and sample is None:
        raise ConfigError("--seed: it repeats a sample, so give --sample as well, such as --sample 500 --seed 7.")
