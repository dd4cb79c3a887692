"""Flat memory: a run of millions of items costs the parent no more than one of thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import scripts

ALLOWED_MIB = 50

STREAM = """
    import itertools, os, resource, sys, threading
    from batchrun import iter_parallel

    PAGE = resource.getpagesize()

    def resident_mib():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * PAGE / 2**20

    warm = [one.value for one in iter_parallel(lambda item: item, range(1000), workers=2)]
    assert sorted(warm) == list(range(1000))
    before = highest = resident_mib()
    items = eval(sys.argv[1])
    total = count = 0
    for outcome in iter_parallel(lambda item: item if type(item) is int else len(item), items, workers=2):
        total += outcome.value
        count += 1
        if count % 20_000 == 0:
            highest = max(highest, resident_mib())
    print(count, total, max(highest, resident_mib()) - before)
"""

STALLED = """
    import itertools, resource, threading
    from batchrun import iter_parallel

    PAGE = resource.getpagesize()

    def resident_mib():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * PAGE / 2**20

    taken = 0

    def endless():
        global taken
        for number in itertools.count():
            taken += 1
            yield number

    list(iter_parallel(lambda item: item, range(1000), workers=2))
    before = resident_mib()
    stream = iter_parallel(lambda item: "x" * 1000, endless(), workers=2)
    for _ in range(50_000):
        next(stream)
    at_rest, seen = taken, []
    for _ in range(20):
        threading.Event().wait(0.05)
        seen.append(resident_mib() - before)
    assert taken == at_rest
    for _ in range(50_000):
        next(stream)
    stream.close()
    print(at_rest - 50_000, max(*seen, resident_mib() - before))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is not here")


@pytest.mark.parametrize(
    ("items", "count", "total"),
    [
        ("range(1_000_000)", 1_000_000, 499_999_500_000),
        ("(number for number in range(300_000))", 300_000, 44_999_850_000),
        ("('x' * 20_000 for _ in range(10_000))", 10_000, 200_000_000),  # 200 MB of items
    ],
)
def test_a_stream_holds_the_parents_memory_within_50_mb(tmp_path: Path, items: str, count: int, total: int) -> None:
    code, out, err = scripts.run(tmp_path, STREAM, items, timeout_s=150)
    assert (code, err) == (0, "")
    seen, summed, grown = out.split()
    assert (int(seen), int(summed)) == (count, total)
    assert float(grown) < ALLOWED_MIB


def test_control_the_same_in_a_list_would_show(tmp_path: Path) -> None:
    """The measure itself: what is kept is seen."""
    hoarding = STREAM.replace("count += 1", "count += 1; warm.append(outcome)")
    code, out, err = scripts.run(tmp_path, hoarding, "range(400_000)", timeout_s=100)
    assert (code, err) == (0, "")
    assert float(out.split()[2]) > ALLOWED_MIB


def test_a_stalled_consumer_costs_no_memory(tmp_path: Path) -> None:
    code, out, err = scripts.run(tmp_path, STALLED, timeout_s=100)
    assert (code, err) == (0, "")
    ahead, grown = out.split()
    assert int(ahead) < 50_000
    assert float(grown) < ALLOWED_MIB
