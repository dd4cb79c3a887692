"""Samples: every item has the same chance, and the same seed draws the same items, also after an interruption."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, insert, select

from batchrun.errors import ConfigError
from batchrun.sources.iterables import IterableSource
from batchrun.sources.keysets import Keyset, keyset
from batchrun.sources.sampling import Sample, Sampled, check_alone, sample_from, sample_of
from batchrun.sources.source import SourceContext

NOWHERE = SourceContext(None, Path(), False)
DURABLE = SourceContext(None, Path(), True)
rows = Table("rows", MetaData(), Column("id", Integer, primary_key=True), Column("name", String))


def drawn(source: Sampled, context: SourceContext = NOWHERE, *, after: Any = None, bound: Any = None) -> list[Any]:
    """All items of a sample."""
    reader = source.read(context, after, source.bound(context) if bound is None else bound)
    found: list[Any] = []
    while not reader.exhausted:
        found += reader.take(100)
    return found


def chi_square(counts: Sequence[int]) -> float:
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 / mean for count in counts)


def limit(places: int) -> float:
    """What a chi-square of so many places stays below in 999 of 1,000 cases (Wilson and Hilferty)."""
    free = places - 1
    return float(free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3)


def assert_uniform(samples: Sequence[Sequence[int]], items: int, places: int = 50) -> None:
    """Items 0 to ``items`` come equally often, wherever they stand."""
    counts = [0] * places
    for sample in samples:
        for item in sample:
            counts[item * places // items] += 1
    assert chi_square(counts) < limit(places), counts


@pytest.fixture
def engine_context(tmp_path: Path) -> Iterator[SourceContext]:
    engine = create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    yield SourceContext(engine, tmp_path, False)
    engine.dispose()


def fill(context: SourceContext, numbers: Sequence[int]) -> Keyset:
    """A keyset over rows with these keys."""
    assert context.engine is not None
    rows.metadata.create_all(context.engine)
    with context.engine.begin() as connection:
        connection.execute(insert(rows), [{"id": number, "name": f"row {number}"} for number in numbers])
    return keyset(select(rows.c.id))


# ------------------------------------------------------------------------------------------------------ what is written
@pytest.mark.parametrize(
    ("written", "meant"), [("500", (500, None)), ("1%", (None, 1.0)), (" 0.5% ", (None, 0.5)), ("1", (1, None))]
)
def test_a_sample_is_a_number_or_a_share(written: str, meant: tuple[int | None, float | None]) -> None:
    found = sample_of(written, 7)
    assert (found.count, found.percent, found.seed) == (*meant, 7)


@pytest.mark.parametrize("wrong", ["0", "-5", "0%", "101%", "x", "1.5", "nan%", "10001", "", "%"])
def test_what_is_no_sample_is_refused_with_examples(wrong: str) -> None:
    with pytest.raises(ValueError, match="is neither a number of items from 1 to 10,000 nor a share above 0%, such as"):
        sample_of(wrong)


def test_without_a_seed_each_sample_is_another_one() -> None:
    assert len({sample_of("5").seed for _ in range(20)}) > 1


def test_a_sample_and_a_limit_or_a_seed_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="--sample and --limit cannot be combined"):
        check_alone("500", "100", None)
    with pytest.raises(ConfigError, match="--seed: it repeats a sample, so give --sample as well"):
        check_alone(None, None, "7")


def test_the_ledger_keeps_a_sample() -> None:
    sample = sample_of("0.5%", 12)
    assert sample_from(sample.to_plain() | {"x": 1}) is None
    assert sample_from({"sample": sample.to_plain()}) == sample
    assert sample_from({}) is None


# ------------------------------------------------------------------------------------------------------------ fairness
def test_a_number_of_items_of_an_iterable_is_uniform() -> None:
    samples = [drawn(Sampled(IterableSource(range(1000)), Sample(50, None, seed))) for seed in range(200)]
    assert all(len(set(sample)) == 50 and sample == sorted(sample) for sample in samples)
    assert_uniform(samples, 1000)


def test_a_share_of_an_iterable_is_uniform() -> None:
    samples = [drawn(Sampled(IterableSource(range(1000)), Sample(None, 5.0, seed))) for seed in range(200)]
    assert abs(sum(map(len, samples)) - 10_000) < 500  # five standard deviations
    assert_uniform(samples, 1000)


def test_keys_that_are_guessed_are_uniform_though_the_keys_have_gaps(engine_context: SourceContext) -> None:
    numbers = [number for number in range(3000) if number % 1000 < 500 or number % 7 == 0]
    source = fill(engine_context, numbers)
    place = {number: at for at, number in enumerate(numbers)}
    samples = [drawn(Sampled(source, Sample(40, None, seed)), engine_context) for seed in range(150)]
    assert all(len(set(sample)) == 40 and sample == sorted(sample) for sample in samples)
    assert_uniform([[place[number] for number in sample] for sample in samples], len(numbers))


def test_where_few_numbers_are_keys_all_are_read(engine_context: SourceContext) -> None:
    numbers = range(0, 10**9, 10**6)
    source = Sampled(fill(engine_context, numbers), Sample(25, None, 7))
    bound = source.bound(engine_context)
    assert bound["of"] == len(numbers)
    assert len(set(drawn(source, engine_context, bound=bound)) & set(numbers)) == 25


def test_a_sample_larger_than_the_source_is_the_source(engine_context: SourceContext) -> None:
    assert drawn(Sampled(fill(engine_context, range(30)), Sample(100, None, 1)), engine_context) == list(range(30))
    assert drawn(Sampled(IterableSource(["a", "b"]), Sample(100, None, 1))) == ["a", "b"]
    assert drawn(Sampled(IterableSource([]), Sample(100, None, 1))) == []


# ---------------------------------------------------------------------------------------------------------- repetition
@pytest.mark.parametrize("sample", [Sample(20, None, 5), Sample(None, 4.0, 5)], ids=str)
def test_the_same_seed_draws_the_same_items_and_another_one_others(sample: Sample) -> None:
    first, again = (drawn(Sampled(IterableSource(range(1000)), sample)) for _ in range(2))
    other = drawn(Sampled(IterableSource(range(1000)), Sample(sample.count, sample.percent, 6)))
    assert first == again
    assert set(first) != set(other)


@pytest.mark.parametrize("sample", [Sample(20, None, 5), Sample(None, 4.0, 5)], ids=str)
def test_a_reader_that_goes_on_takes_the_rest_of_the_same_sample(sample: Sample) -> None:
    numbers = [f"item {number}" for number in range(500)]
    source = Sampled(IterableSource(numbers), sample)
    bound = source.bound(DURABLE)
    whole = drawn(source, DURABLE, bound=bound)
    reader = source.read(DURABLE, None, bound)
    first = reader.take(7)
    again = Sampled(IterableSource(numbers), sample)
    assert first + drawn(again, DURABLE, after=reader.cursor, bound=bound) == whole


def test_a_generator_is_read_once(tmp_path: Path) -> None:
    source = Sampled(IterableSource(number for number in range(100)), Sample(10, None, 3))
    bound = source.bound(DURABLE)
    assert source.bound(DURABLE) == bound
    assert source.whole(DURABLE, bound) == 100
    assert len(drawn(source, DURABLE, bound=bound)) == 10


def test_a_limit_of_the_job_is_what_the_sample_is_of() -> None:
    for sample in (Sample(20, None, 1), Sample(None, 50.0, 1)):
        source = Sampled(IterableSource(range(1000)), sample, 100)
        assert set(drawn(source)) <= set(range(100))
        assert source.whole(NOWHERE, source.bound(NOWHERE)) == 100
