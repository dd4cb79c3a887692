"""The chaos suite at the size of CHAOS (0.2): every scenario on its databases, and its control.

The seed is in each test's name and in CHAOS_SEED; the same seed plays the same chances.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.chaos import stories
from tests.chaos.scenario import Scenario
from tests.chaos.world import World
from tests.postgres import Server
from tests.support.databases import Clones

FACTOR = float(os.environ.get("CHAOS", "0.2"))
SEED = int(os.environ.get("CHAOS_SEED", "20261123"))
SLACK = 3.0

PLAYS = [(one, database) for one in stories.ALL.values() for database in one.databases]


@pytest.fixture
def world(request: pytest.FixtureRequest, clones: Clones, own_postgres: Server, tmp_path: Path) -> World:
    one, database = request.param
    if one.needs and not shutil.which(one.needs):
        pytest.skip(f"{one.needs} is not on PATH")
    url = stories.url_for(database, request.getfixturevalue)
    return World(one, database, url, FACTOR, SLACK, SEED, tmp_path, own_postgres, clones)


@pytest.mark.parametrize("world", PLAYS, indirect=True, ids=lambda play: f"{play[0].name}-{play[1]}-seed{SEED}")
def test_survives(world: World) -> None:
    world.scenario.story(world)


def controlled() -> list[tuple[Scenario, str]]:
    return [(one, one.databases[0]) for one in stories.ALL.values() if one.against]


@pytest.mark.parametrize("world", controlled(), indirect=True, ids=lambda play: play[0].name)
def test_control(world: World) -> None:
    against = world.scenario.against
    assert against is not None
    print(against(world))
