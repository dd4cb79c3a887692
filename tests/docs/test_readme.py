"""The documentation is true: its code runs, its commands exit as it says, its links lead somewhere, its lists are complete."""

from __future__ import annotations

import ast
import inspect
import io
import multiprocessing
import os
import re
import signal
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

import batchrun
from batchrun import errors
from batchrun.cli.main import app
from batchrun.config_shape import TABLES, JobTable, keys_of
from batchrun.ledger import schema
from batchrun.options import OPTION_NAMES, SETTING_NAMES
from batchrun.reporting.jsonout import RUN_KEYS
from batchrun.runs import RunStatus
from tests.support.commands import CommandLine

from .pages import PAGES, ROOT, anchors, blocks, links, project, section, shell_of

README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "guide.md"
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
LEDGER = ROOT / "docs" / "ledger.md"
SHARED = {"--config", "--database-url", "--profile", "--debug", "--help", "-h"}


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------------------------- README
@pytest.mark.parametrize("heading", ["## Quick start", "## Tests"])
def test_the_first_block_under_the_heading_is_one_command(heading: str) -> None:
    first = blocks(section(README.read_text(), heading))[0]
    assert first.language == "sh"
    (command,) = first.text.splitlines()
    assert command.startswith("python3 -m venv ")
    assert "\\" not in command


def test_the_quick_start_runs_a_job_that_is_there() -> None:
    first = blocks(section(README.read_text(), "## Quick start"))[0]
    name = first.text.split("batchrun run ")[1].strip()
    assert re.search(rf"^def {name}\(", (ROOT / "jobs" / f"{name}.py").read_text(), re.MULTILINE)


def test_the_code_of_the_readme_runs_and_applies_each_effect_once(tmp_path: Path, batchrun: CommandLine) -> None:
    made = project(README, tmp_path)
    for _ in range(2):
        done = made.run("first.py")
        assert (done.stdout, done.stderr) == ("done 200 exactly-once\n", "")
        assert credits_in(tmp_path) == [(105, 200)]
    assert made.carry_out(shell_of(README, after="## A first job"), batchrun) == []
    assert credits_in(tmp_path) == [(105 + round(105 * 0.015), 200)]


def credits_in(folder: Path) -> list[tuple[int, int]]:
    connection = sqlite3.connect(folder / "first.db")
    try:
        return connection.execute("SELECT credit, count(*) FROM accounts GROUP BY credit").fetchall()
    finally:
        connection.close()


def test_a_pool_waits_for_ever_when_a_worker_is_killed_as_the_readme_says() -> None:
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        result = pool.map_async(dies_at_three, range(6), chunksize=1)
        result.wait(2)
        assert not result.ready()


def dies_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


# -------------------------------------------------------------------------------------------------------- guide
def test_the_files_and_commands_of_the_guide_do_what_it_says(tmp_path: Path, batchrun: CommandLine) -> None:
    made = project(GUIDE, tmp_path)
    assert made.carry_out(shell_of(GUIDE), batchrun) == []
    assert made.run("script.py").stdout == "[2119, 2675, 1605, 6099]\none done 3\nthree done 5\n"
    assert len((tmp_path / "outbox.txt").read_text().splitlines()) == 4
    tested = made.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_price.py")
    assert tested.returncode == 0, tested.stdout


# ------------------------------------------------------------------------------------------ reference: commands
def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="batchrun")
    assert result.exit_code == 0
    return result.output


def commands_of(*group: str) -> set[str]:
    _, _, listed = help_of(*group).partition("Commands:")
    return set(re.findall(r"^  ([a-z]+)  ", listed, re.MULTILINE))


def commands() -> set[str]:
    groups = {"ledger", "schedule"}
    return (commands_of() - groups) | {f"{group} {name}" for group in groups for name in commands_of(group)}


def documented_commands() -> dict[str, str]:
    """Each command of the reference, with its section."""
    headings = re.findall(r"^### batchrun ([a-z]+(?: [a-z]+)?)(.*)$", REFERENCE, re.MULTILINE)
    return {name: section(REFERENCE, f"### batchrun {name}{rest}") for name, rest in headings}


def test_every_command_is_in_the_reference_and_no_other() -> None:
    assert set(documented_commands()) == commands()


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_option_of_a_command_is_in_its_section_and_no_other(command: str) -> None:
    _, _, options = help_of(*command.split()).partition("Options:")
    listed = re.findall(r"^  (?:(-\w), )?(--[a-z-]+)", options, re.MULTILINE)
    there = {name for pair in listed for name in pair if name}
    documented = set(re.findall(r"`(--?[a-z][a-z-]*)", documented_commands()[command]))
    assert documented == there - SHARED


def test_the_options_of_all_commands_are_in_the_reference() -> None:
    intro = section(REFERENCE, "## Command line").partition("###")[0]
    assert set(re.findall(r"[` ](--?[a-z][a-z-]*)", intro)) - {"-m"} == {*SHARED, "--version", "--json"}


def test_the_documentation_names_no_command_that_is_not_there() -> None:
    known = {name.split()[0] for name in commands()}
    for page in PAGES:
        text_of = page.read_text()
        shell = "".join(block.text for block in blocks(text_of) if block.language in ("sh", ""))
        used = re.findall(r"`(?:\.venv/bin/)?batchrun ([a-z]+)", text_of) + re.findall(r"^batchrun ([a-z]+)", shell, re.MULTILINE)
        assert set(used) <= known, shown(page)


# --------------------------------------------------------------------------------------- reference: other lists
def test_every_public_name_is_in_the_reference() -> None:
    first = section(REFERENCE, "## Python").partition("###")[0]
    assert set(re.findall(r"`(\w+)`", first)) - {"batchrun"} == set(batchrun.__all__)


def test_the_signature_in_the_reference_is_the_real_one() -> None:
    block = next(block.text for block in blocks(REFERENCE) if "run_parallel(" in block.text)
    written = ast.parse(f"def {block.partition(' -> Report')[0]}: ...").body[0]
    assert isinstance(written, ast.FunctionDef)
    real = inspect.signature(batchrun.run_parallel).parameters.values()
    arguments = [f"{one.name}={one.default!r}" if one.default is not one.empty else one.name for one in real]
    assert ast.unparse(written.args).replace(", *, ", ", ").split(", ") == arguments
    for name in inspect.signature(batchrun.iter_parallel).parameters:
        assert f"| `{name}` |" in section(REFERENCE, "### run_parallel, iter_parallel")


@pytest.mark.parametrize("name", [*OPTION_NAMES, *SETTING_NAMES])
def test_every_option_of_a_job_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in section(REFERENCE, "### job")


@pytest.mark.parametrize("table", [*TABLES])
def test_every_key_of_a_table_is_in_the_reference_and_no_other(table: str) -> None:
    _, _, rest = section(REFERENCE, "## config.toml").partition(f"| key of `[{table}]`")
    rows = re.findall(r"^\| (`.*?) \|", rest.partition("\n\n")[0], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(keys_of(TABLES[table]))


def test_every_key_of_a_job_table_is_in_the_reference() -> None:
    text_of = section(REFERENCE, "## config.toml")
    assert [key for key in keys_of(JobTable) if f"`{key}`" not in text_of] == []


@pytest.mark.parametrize("name", ["BATCHRUN_CONFIG", "BATCHRUN_PROFILE", "BATCHRUN_DEBUG"])
def test_every_variable_is_in_the_reference(name: str) -> None:
    assert f"| `{name}` |" in section(REFERENCE, "## Environment variables")


def test_every_key_of_the_json_is_in_the_reference() -> None:
    assert [key for key in RUN_KEYS if f"`{key}`" not in section(REFERENCE, "## JSON")] == []


def test_every_status_is_in_the_reference() -> None:
    assert [status for status in RunStatus if f"`{status}`" not in section(REFERENCE, "## Statuses")] == []


def test_every_error_is_in_the_reference_with_its_exit_code() -> None:
    rows = re.findall(r"^\| `(\w+)`.*? \| (\d+) \|", section(REFERENCE, "### Errors"), re.MULTILINE)
    known = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BatchrunError)]
    assert dict(rows) == {kind.__name__: str(kind.exit_code) for kind in known if kind is not errors.BatchrunError}


# -------------------------------------------------------------------------------------------------------- links
@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page: Path) -> None:
    text_of = page.read_text()
    for path, fragment in links(text_of):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if fragment:
            assert fragment in anchors(target.read_text()), f"{path}#{fragment}"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    reached = {(index.parent / path).resolve() for path, _ in links(index.read_text())}
    assert [shown(page) for page in PAGES if page not in {*reached, index}] == []


# ------------------------------------------------------------------------------------------------------- ledger
ENV_PY = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, create_engine

target_metadata = MetaData()
Table("orders", target_metadata, Column("id", Integer, primary_key=True))
{recipe}
with create_engine({url!r}).connect() as connection:
    context.configure(connection=connection, target_metadata=target_metadata, include_schemas={schemas}, {handed_over})
    with context.begin_transaction():
        context.run_migrations()
"""
MAKO = """revision = ${repr(up_revision)}
down_revision = None
from alembic import op
import sqlalchemy as sa
def upgrade():
    ${upgrades}
def downgrade():
    ${downgrades}
"""


def upgrades(folder: Path, url: str, recipe: str, *, schemas: bool = False) -> str:
    """What ``alembic revision --autogenerate`` would do in a database with a ledger, for a project with one table."""
    name = re.search(r"^def (\w+)", recipe, re.MULTILINE)
    handed_over = f"{name[1]}={name[1]}" if name else ""
    versions = folder / "alembic" / "versions"
    versions.mkdir(parents=True)
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = alembic\npath_separator = os\n")
    (folder / "alembic" / "script.py.mako").write_text(MAKO)
    env = ENV_PY.format(recipe=recipe, url=url, schemas=schemas, handed_over=handed_over)
    (folder / "alembic" / "env.py").write_text(env)
    config = Config(folder / "alembic.ini", stdout=io.StringIO())
    config.set_main_option("script_location", str(folder / "alembic"))
    command.revision(config, "made", autogenerate=True)
    (made,) = versions.glob("*.py")
    return made.read_text().partition("def upgrade")[2].partition("def downgrade")[0]


def recipes() -> list[str]:
    found = [block.text for block in blocks(LEDGER.read_text()) if "def include_" in block.text]
    assert len(found) == 2
    return found


def make_ledger(url: str, schema_name: str | None = None) -> str:
    """Returns the URL with its driver named: SQLAlchemy 2.1 takes postgresql:// for psycopg 3."""
    url = url.replace("postgresql://", "postgresql+psycopg2://")
    engine = create_engine(url)
    if schema_name:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema_name}"))
    schema.ensure(engine, schema_name)
    engine.dispose()
    return url


def test_alembic_leaves_the_tables_alone_with_the_recipes_and_drops_them_without(database_url: str, tmp_path: Path) -> None:
    url = make_ledger(database_url)
    for number, recipe in enumerate(recipes()):
        made = upgrades(tmp_path / str(number), url, recipe)
        assert "create_table('orders'" in made
        assert "batchrun" not in made
    assert upgrades(tmp_path / "control", url, "").count("drop_table('batchrun_") == 8


def test_alembic_leaves_a_schema_of_its_own_alone(pg_url: str, tmp_path: Path) -> None:
    url = make_ledger(pg_url, "batchrun")
    assert "batchrun" not in upgrades(tmp_path / "plain", url, "")
    for number, recipe in enumerate(recipes()):
        assert "batchrun" not in upgrades(tmp_path / str(number), url, recipe, schemas=True)
    assert upgrades(tmp_path / "control", url, "", schemas=True).count("drop_table('batchrun_") == 8


def test_a_chunk_takes_about_200_bytes_as_the_ledger_page_says(pg_url: str) -> None:
    engine = create_engine(make_ledger(pg_url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text(
                "INSERT INTO batchrun_chunk (run, no, epoch, size, pos, first, last, open) "
                "SELECT '4f7k2m9xab', n, 1, 1000, 1000, n * 1000, n * 1000 + 999, false FROM generate_series(1, 20000) n"
            )
        )
        connection.execute(text("VACUUM FULL batchrun_chunk"))
        size = connection.execute(text("SELECT pg_total_relation_size('batchrun_chunk')")).scalar_one()
    engine.dispose()
    assert 180 <= size / 20000 <= 230
