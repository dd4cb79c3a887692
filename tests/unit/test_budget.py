"""The connection budget as arithmetic: plain numbers in, the workers that fit and a sum that can be checked out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from batchrun.calls import Call
from batchrun.cli.values import given_options
from batchrun.config_shape import read_text
from batchrun.database.budget import Limit, merged, tightest
from batchrun.errors import ConfigError
from batchrun.jobs import job
from batchrun.options import RunOptions, with_options
from batchrun.seating import cores, seat
from tests.support.oracle import task


def limit(**given: Any) -> Limit:
    plain = {"key": ("server",), "name": "max_connections", "remedy": "max_connections", "most": 25, "reserved": 3, "in_use": 7}
    return Limit(**{**plain, "ours": 2, "threads": 1, "parent": 2, **given})


def test_others_are_those_in_use_that_are_not_the_parents_own() -> None:
    assert (limit().others, limit().available) == (5, 17)
    assert limit(in_use=1, ours=2).others == 0  # one of ours was opened after the server counted


@pytest.mark.parametrize(
    ("given", "threads", "fitting"),
    [
        ({}, 1, 15),
        ({}, 4, 3),
        ({"threads": 2}, 1, 7),
        ({"in_use": 22}, 1, 0),
        ({"in_use": 21}, 1, 1),
        ({"in_use": 40}, 1, 0),
        ({"threads": 0}, 1, float("inf")),
        ({"threads": 0, "in_use": 23}, 1, 0),
    ],
)
def test_as_many_workers_fit_as_the_sum_leaves_room_for(given: dict[str, int], threads: int, fitting: float) -> None:
    assert limit(**given).fitting(threads) == fitting


def test_what_fits_is_what_the_sum_says_and_one_more_is_too_many() -> None:
    for threads, databases, in_use in itertools.product((1, 3), (1, 2), range(26)):
        one = limit(threads=databases, in_use=in_use)
        most = int(one.fitting(threads))
        assert most == 0 or one.needed(most, threads) <= one.available
        assert one.needed(most + 1, threads) > one.available


def test_engines_on_one_limit_add_up_and_the_tightest_limit_decides() -> None:
    source = limit(ours=1, parent=1, in_use=6)
    owner = limit(ours=1, parent=1, in_use=7)
    role = limit(key=("role", "app"), most=10, reserved=0, in_use=2, ours=1, parent=1)
    server, same_role = merged([source, role, owner])
    assert server == limit(threads=2)
    assert same_role == role
    assert tightest([server, same_role], 1) == server
    assert tightest([server, replace(role, most=5)], 1) == replace(role, most=5)
    assert tightest([], 1) is None


def test_the_sum_is_two_lines() -> None:
    assert limit().sum(20, 1).splitlines() == [
        "  needed     20 workers x 1 thread + 2 of the parent = 22",
        "  available  max_connections 25 - 3 reserved - 5 in use by others = 17",
    ]
    role = limit(name="connection limit of role app", reserved=0, threads=2)
    assert role.sum(1, 4).splitlines() == [
        "  needed     1 worker x 4 threads x 2 databases + 2 of the parent = 10",
        "  available  connection limit of role app 25 - 5 in use by others = 20",
    ]


@pytest.mark.parametrize(("workers", "total", "seats"), [("auto", None, cores()), (None, 1, 1), (7, 3, 3), (7, 0, 1), (0, 9, 0)])
def test_without_postgresql_items_and_cores_decide(tmp_path: Any, workers: Any, total: int | None, seats: int) -> None:
    call = Call(job(task).job, with_options(RunOptions(), {"workers": workers}), tmp_path)
    assert seat(call, "run00000", [], total, lambda notice: pytest.fail(notice.text)) == seats


def test_auto_is_an_option_everywhere_and_no_other_text_is() -> None:
    assert with_options(RunOptions(), {"workers": "auto"}).workers == "auto"
    assert given_options({"workers": "auto"}) == {"workers": "auto"}
    assert given_options({"workers": "4"}) == {"workers": 4}
    assert read_text("workers", "auto") == "auto"
    for wrong in ("4", "AUTO", "none", ""):
        with pytest.raises(ConfigError, match="is not a whole number from 0 to 1,024"):
            with_options(RunOptions(), {"workers": wrong})
