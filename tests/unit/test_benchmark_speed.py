"""The arithmetic of the speed benchmark, its clock and its relay, and that its command runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speed.bare import script
from benchmarks.speed.driver import Bench, Outcome
from benchmarks.speed.figures import Spread, best_peer, cpu_ratio, per_item_us, ratio, verdicts, with_next_ms
from benchmarks.speed.relay import Relay
from benchmarks.speed.table import as_data, as_markdown, as_text, read_outcomes
from benchmarks.speed.trial import Measured, Reading, Trial, arrive
from benchmarks.speed.work import is_slow
from benchmarks.speed.workloads import BEST, WORKLOADS, Goal, Lane, Limit, Workload
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
LANES = (
    Lane("pool-1", "pool", "mp.Pool, chunk 1", options={"chunk": 1}),
    Lane("pool", "pool", search=({"chunk": 20}, {"chunk": 100}), is_peer=True),
    Lane("ppe", "ppe", search=({"chunk": 20},), is_peer=True),
    Lane("ours", "batchrun", "batchrun"),
)
GOALS = (Goal("ours", BEST, 1.0, 1.1), Goal("ours", "pool-1", 2.5))
WORKLOAD = Workload("some", "some work", "noop", 100, 10, LANES, GOALS)


def rounds(*rates: float) -> list[Measured]:
    """Rounds of 100 items with these rates, of which half the time is the client's CPU and none is known of the server's."""
    return [Measured(100, 100 / rate, 50 / rate, None) for rate in rates]


MEASURED = {
    "pool-1": rounds(100, 50, 100),
    "pool": rounds(200, 100, 210),
    "ppe": rounds(190, 300, 190),
    "ours": rounds(210, 120, 200),
}


def test_a_spread_is_the_median_between_the_extremes() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_the_best_peer_has_the_best_median_and_is_neither_chunk_1_nor_ours() -> None:
    assert best_peer(WORKLOAD, MEASURED) == "pool"
    assert best_peer(WORKLOAD, {"ours": rounds(1)}) is None


def test_a_ratio_is_taken_within_each_round() -> None:
    found = ratio(MEASURED, "ours", "pool-1")
    assert found is not None
    assert (found.middle, found.least, found.greatest) == pytest.approx((2.1, 2.0, 2.4))
    assert ratio(MEASURED, "ours", "nobody") is None


def test_cpu_an_item_is_in_microseconds_and_not_known_where_it_was_not_read() -> None:
    assert per_item_us(rounds(100, 200, 400), "client_s") == pytest.approx(2500)
    assert per_item_us(rounds(100), "server_s") is None


def test_half_the_cpu_time_is_twice_as_good_and_counts_the_server() -> None:
    measured = {"pool": [Measured(100, 1.0, 0.6, 0.2)], "ours": [Measured(100, 9.0, 0.1, 0.3)], "noop": rounds(100)}
    assert cpu_ratio(measured, "ours", "pool") == pytest.approx(2.0)
    assert cpu_ratio(measured, "noop", "pool") == pytest.approx(1.6)
    assert cpu_ratio(measured, "nobody", "pool") is None


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        ((220.0, 110.0, 231.0), "reached, stretch too"),
        ((200.0, 105.0, 210.0), "reached"),
        ((160.0, 80.0, 168.0), "not reached: 20 % short"),
        ((160.0, 101.0, 168.0), "not reached: 20 % short (within the spread)"),
    ],
)
def test_a_verdict_says_whether_a_goal_is_reached_and_how_far_it_is(ours: tuple[float, ...], word: str) -> None:
    found = verdicts(WORKLOAD, {**MEASURED, "ours": rounds(*ours)}, {})
    assert [verdict.against for verdict in found] == ["pool", "pool-1"]
    assert found[0].word == word


def test_a_goal_whose_other_side_was_not_measured_has_no_verdict() -> None:
    assert [one.against for one in verdicts(WORKLOAD, {"ours": rounds(1), "pool-1": rounds(1)}, {})] == ["pool-1"]


def test_a_figure_over_its_limit_is_not_reached_and_one_without_measurement_has_no_verdict() -> None:
    limits = (Limit("ours", "idle_s", "≤ 1 s", at_most=1.0), Limit("ours", "of_ideal", "≥ 0.9", at_least=0.9))
    measured = [replace(one, more={"idle_s": idle_s}) for one, idle_s in zip(rounds(1, 1, 1), (1.2, 0.5, 1.3), strict=True)]
    (found,) = verdicts(replace(WORKLOAD, limits=limits), {"ours": measured}, {})
    assert found.word == "not reached: 20 % over (within the spread)"


@pytest.mark.parametrize(("trips", "is_reached"), [(4.05, True), (4.5, False)])
def test_a_lean_lane_needs_no_round_trip_more_than_the_best_peer(trips: float, is_reached: bool) -> None:
    (found,) = verdicts(replace(WORKLOAD, goals=(), lean=("ours",)), MEASURED, {"pool": 4.0, "ours": trips})
    assert found.is_reached is is_reached


def test_a_further_worker_takes_what_many_take_beyond_one() -> None:
    alone = [replace(one, more={"ready_ms": 100.0}) for one in rounds(1)]
    many = [replace(one, more={"ready_ms": 300.0}) for one in rounds(1)]
    assert with_next_ms(many, alone, 8)[0].more["next_ms"] == 25.0


def test_the_tables_name_every_way_and_every_goal() -> None:
    outcome = Outcome(WORKLOAD, MEASURED, {"pool": {"chunk": 100}}, {"ours": 4.0}, ["ppe: it broke"])
    text, markdown = as_text([outcome]), as_markdown([outcome])
    for shown in ("mp.Pool *", "ProcessPoolExecutor", "2.10", "4.00", "chunk=100", "≥ 2.5 x mp.Pool, chunk 1", "16 % short"):
        assert shown in text
        assert shown in markdown
    assert "**not reached: 16 % short**" in markdown
    data = json.loads(json.dumps(as_data([outcome], {})))
    assert data["workloads"][0]["lanes"]["pool"]["items_per_s"]["middle"] == 200
    assert data["workloads"][0]["goals"][1]["verdict"] == "not reached: 16 % short"
    assert data["workloads"][0]["troubles"] == ["ppe: it broke"]


def test_every_goal_names_lanes_of_its_workload() -> None:
    for workload in WORKLOADS.values():
        lanes = {lane.key for lane in workload.lanes}
        assert len(lanes) == len(workload.lanes)
        assert {goal.lane for goal in workload.goals} | {limit.lane for limit in workload.limits} | {*workload.lean} <= lanes
        assert {goal.against for goal in workload.goals} <= {*lanes, BEST}


def test_every_worker_has_as_many_items() -> None:
    assert Bench(3, 1, ["pool"]).items_of(WORKLOAD, LANES[0], 1.0) == 99
    assert Bench(3, 1, ["pool"], is_quick=True).items_of(WORKLOAD, replace(LANES[0], share=0.1), 1.0) == 3


def test_one_item_of_a_hundred_is_slow() -> None:
    assert [sum(is_slow(item) for item in range(start, start + 100)) for start in range(0, 1000, 100)] == [1] * 10


def test_the_pgbench_script_gives_each_client_keys_of_its_own_and_marks_in_begins_message() -> None:
    assert "\\set key :i * 2 + :client_id + 1" in script(2, marked=True)
    assert "BEGIN\\; UPDATE bench_chunk SET pos = pos + 1" in script(2, marked=True)
    assert "bench_chunk" not in script(2, marked=False)


def test_a_trial_crosses_to_its_program_unchanged() -> None:
    trial = Trial("pool", "noop", 10, 2, "", "/tmp", 7, {"chunk": 20})
    assert Trial.read(trial.text()) == trial


def test_what_was_written_as_json_is_read_again_and_a_later_file_replaces_an_earlier(tmp_path: Path) -> None:
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    outcomes = [
        Outcome(WORKLOADS["noop"], {"ours": rounds(1, 2)}, {"ours": {}}, {"ours": 4.0}, ["ppe: it broke"]),
        Outcome(WORKLOADS["1kib"], {"ours": rounds(5)}, {"ours": {"results": True}}),
    ]
    again = Outcome(WORKLOADS["1kib"], {"ours": rounds(7)}, {"ours": {"results": True}})
    files[0].write_text(json.dumps(as_data(outcomes, {"commit": "a"})))
    files[1].write_text(json.dumps(as_data([again], {"commit": "b"})))
    assert read_outcomes(files) == ([outcomes[0], again], {"commit": "b"})


# ----------------------------------------------------------------------------------------- the clock and the relay
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="CPU time is read from /proc, which is not here")
def test_where_a_call_goes_is_told_in_the_order_in_which_it_goes_there() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.dispatch", "--calls", "1"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(told) == 4
    for line in told[1:]:
        first, full, last, returned, parents, workers = map(float, line.split()[-6:])
        assert 0 < first <= full <= last <= returned
        assert parents > 0 < workers


def test_the_clock_starts_when_the_last_worker_has_come(tmp_path: Path) -> None:
    arrival = f"from benchmarks.speed.trial import arrive; arrive({str(tmp_path)!r}, 2, {os.getsid(0)}, 0)"
    with subprocess.Popen([sys.executable, "-c", arrival], cwd=ROOT) as first:
        wait_until(lambda: bool(arrivals_in(tmp_path)), 30.0, what="the first worker is there")
        assert not (tmp_path / "go").exists()
        arrive(str(tmp_path), 2, os.getsid(0), 0)
        assert first.wait(30.0) == 0
    reading = (tmp_path / "go").read_text()
    assert Reading(**json.loads(reading)).server_s is None
    arrive(str(tmp_path), 2, os.getsid(0), 0)
    assert (tmp_path / "go").read_text() == reading


def arrivals_in(folder: Path) -> list[Path]:
    return list(folder.glob("worker-*"))


ENDED_CHILD = """
import os, subprocess, sys
from benchmarks.speed.trial import read_now
before = read_now(os.getsid(0), 0)
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"], check=True)
print(read_now(os.getsid(0), 0).client_s - before.client_s)
"""


def test_cpu_time_of_children_that_have_ended_is_counted() -> None:
    alone = [sys.executable, "-c", ENDED_CHILD]  # in a session of its own: in ours, other tests' processes end meanwhile
    ran = subprocess.run(alone, cwd=ROOT, text=True, capture_output=True, check=True, start_new_session=True)
    assert float(ran.stdout) >= 0.25


def test_the_relay_passes_on_what_is_said_and_counts_round_trips() -> None:
    def serve() -> None:
        server, _ = listener.accept()
        with server:
            while said := server.recv(100):
                server.sendall(said.upper())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        with Relay(f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/d", 1.0) as relay:
            port = int(relay.url.rpartition(":")[2].partition("/")[0])
            with socket.create_connection(("127.0.0.1", port), 10.0) as client:
                for word in (b"one", b"two", b"three"):
                    client.sendall(word)
                    assert client.recv(100) == word.upper()
                assert relay.round_trips() == 3
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""


# ---------------------------------------------------------------------------------------------------- the command
def test_the_command_measures_and_judges(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ["--quick", "--only", "noop", "--peers", "pool,ppe,batchrun", "--json", str(file)]
    ran = subprocess.run([sys.executable, "-m", "benchmarks", *options], cwd=ROOT, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert "no-op, over integers" in ran.stdout
    data = json.loads(file.read_text())
    assert set(data["workloads"][0]["lanes"]) == {"pool-1", "pool", "ppe", "ours"}
    assert len(data["workloads"][0]["goals"]) == 2
    assert data["facts"]["packages"]["SQLAlchemy"]


def test_a_workload_that_is_not_there_is_named_with_those_that_are() -> None:
    ran = subprocess.run([sys.executable, "-m", "benchmarks", "--only", "noob"], cwd=ROOT, text=True, capture_output=True)
    assert ran.returncode == 2
    assert "noob is not known; there are noop" in ran.stderr
