"""config.toml, profiles, variables and the command line: what wins, where it came from, what is refused."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.config import (
    Settings,
    effective_options,
    job_parameters,
    job_settings,
    load_settings,
    option_origins,
    parameter_places,
    unknown_jobs,
    warnings,
)
from batchrun.errors import ConfigError
from batchrun.jobs import Job
from batchrun.options import FailureLimit
from batchrun.toml_places import Place, find_places

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str | None = None, **options: Any) -> Settings:
        if text is not None:
            (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        return load_settings(**{"cwd": tmp_path, "environ": {}, **options})

    return load


def refusal(load: Load, *given: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*given, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


def a_job(**options: Any) -> Job:
    return Job("send", lambda session, item: None, options=options)


# ------------------------------------------------------------------------------------------------- finding the file
def test_without_config_toml_there_are_defaults_and_the_paths_searched(load: Load, tmp_path: Path) -> None:
    settings = load()
    assert (settings.file, settings.folder) == (None, tmp_path)
    assert settings.database.url == f"sqlite:///{tmp_path}/batchrun.db"
    with pytest.raises(ConfigError) as caught:
        settings.need_file()
    assert "batchrun init" in str(caught.value)
    assert f"  {tmp_path}/config.toml\n  {tmp_path.parent}/config.toml" in str(caught.value)


def test_config_toml_of_the_nearest_parent_is_used(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    settings = load("[run]\nworkers = 3", cwd=tmp_path / "a" / "b")
    assert settings.folder == tmp_path
    assert settings.need_file() == tmp_path / "config.toml"


def test_an_explicit_file_that_is_missing_is_refused(load: Load, tmp_path: Path) -> None:
    message = f"there is no file {tmp_path}/x.toml; name the file, or make a project with: batchrun init"
    assert refusal(load, config="x.toml") == f"--config: {message}"
    assert refusal(load, environ={"BATCHRUN_CONFIG": "x.toml"}) == f"BATCHRUN_CONFIG: {message}"


def test_a_directory_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    assert refusal(load).startswith(f"config.toml is a directory: {tmp_path}/config.toml; name a text file")


def test_a_fifo_is_refused_and_never_waited_for(load: Load, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    assert "config.toml is no regular file (a pipe, a device or a socket)" in refusal(load)


def test_a_socket_and_a_dangling_link_are_refused(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("config.toml")
        assert "no regular file" in refusal(load)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").symlink_to("nowhere")
    assert "config.toml cannot be read" in refusal(load)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"[run]\n# caf\xe9\n")
    assert "config.toml:2: byte 0xe9; save it as UTF-8" in refusal(load)


def test_a_byte_order_mark_is_no_error(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbf[run]\r\nworkers = 2\r\n")
    assert load().run == {"workers": 2}


def test_a_deleted_working_directory_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match=r"^The working directory no longer exists; change to one that does\.$"):
        load_settings(environ={})


# ----------------------------------------------------------------------------------------------------- wrong texts
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nworkers = = 2", "config.toml:2:11: this is no TOML: Invalid value"),
        (
            "[run]\nworkers = 2\nworkers = 3",
            "config.toml:3:1: run.workers is there twice; the first is at config.toml:2:1. Keep one.",
        ),
        ("[run]\n[database]\n[run]", "config.toml:3:2: run is there twice; the first is at config.toml:1:2. Keep one."),
        ("[run]\nwrokers = 2", "config.toml:2:1: run.wrokers: there is no such key; did you mean 'workers'?"),
        ("[rnu]\nworkers = 2", "config.toml:1:2: rnu: there is no such key; did you mean 'run'?"),
        ("workers = 2", "config.toml:1:1: workers: there is no such key; it belongs in [run]"),
        ("[run]\nschedule = '1'", "config.toml:2:1: run.schedule: there is no such key; it belongs in [jobs.NAME]"),
        ("run = 2", "config.toml:1:1: run: this must be a table: write [run] on a line of its own, its keys below"),
        (
            "[profile.x.run]\nworkers = -1",
            "config.toml:2:1: profile.x.run.workers: -1 is not a whole number from 0 to 1,024, such as 4",
        ),
        ("[jobs.'a-b']\nworkers = 1", "config.toml:1:2: jobs.a-b: 'a-b' is no name of a job: a job is named like its function"),
        ("[database]\nurl = 'nonsense:s3cret'", "config.toml:2:1: database.url: this is no database URL; write postgresql://"),
        ("[database]\npool = 'static'", "config.toml:2:1: database.pool: 'static' is not one of 'queue'"),
        (
            "[database]\nfactory = 'app'",
            "config.toml:2:1: database.factory: 'app' names no function; write 'package.module:function'",
        ),
        (
            "[database]\nurl = 'sqlite://'",
            "config.toml:2:1: database.url: a SQLite database in memory lives inside one connection",
        ),
        ("[ledger]\nkeep_days = 0", "config.toml:2:1: ledger.keep_days: 0 is not a whole number of days"),
        ("[notify]\non_failure = 'mail x'", "config.toml:2:1: notify.on_failure: this must be a list of arguments"),
        ("[jobs.a]\ntimezone = 'Mars'", "config.toml:2:1: jobs.a.timezone: 'Mars' is no time zone"),
    ],
)
def test_an_error_in_the_file_has_line_column_and_advice(load: Load, text: str, message: str) -> None:
    assert refusal(load, text).startswith(message)


@pytest.mark.parametrize("value", ["-1", '"4"', "true", "2.5", "1000000000"])
def test_wrong_workers_name_the_range_and_an_example(load: Load, value: str) -> None:
    shown = repr(tomllib.loads(f"v = {value}")["v"])
    expected = (
        f"config.toml:2:1: run.workers: {shown} is not a whole number from 0 to 1,024, such as 4 (0 runs inline), or 'auto'"
    )
    assert refusal(load, f"[run]\nworkers = {value}") == expected


@pytest.mark.parametrize("value", ['"10 parsecs"', "0", "-5"])
def test_a_wrong_timeout_gives_examples(load: Load, value: str) -> None:
    message = refusal(load, f"[run]\ntimeout = {value}")
    assert message.startswith("config.toml:2:1: run.timeout: ")
    assert "'30s', '5m' or '2h'" in message


def test_all_errors_are_shown_at_once_but_at_most_ten(load: Load) -> None:
    message = refusal(load, "[run]\n" + "\n".join(f"key{n} = 1" for n in range(12)))
    lines = message.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and 2 more"


def test_values_nested_without_end_are_refused(load: Load) -> None:
    assert refusal(load, f"[jobs.a]\nx = {'[' * 5000}{']' * 5000}").startswith("config.toml")


# -------------------------------------------------------------------------------------------------- order and origin
FULL = """
[run]
workers = 1
timeout = "30s"
retries = 1
[jobs.send]
workers = 2
since = 2026-01-01
schedule = "0 3 * * *"
[profile.staging.run]
workers = 3
[profile.staging.jobs.send]
retries = 9
"""


def test_each_origin_overrules_the_one_before(load: Load) -> None:
    job = a_job(workers=9, grace=5.0)
    settings = load(FULL)
    assert effective_options(load("")).workers is None
    assert effective_options(load(""), job).workers == 9
    assert effective_options(load(FULL)).workers == 1
    assert effective_options(settings, job).workers == 2
    staging = load(FULL, profile="staging")
    assert effective_options(staging, job).workers == 3
    variable = load(FULL, profile="staging", environ={"BATCHRUN_RUN_WORKERS": "4"})
    assert effective_options(variable, job).workers == 4
    overridden = load(FULL, environ={"BATCHRUN_RUN_WORKERS": "4"}, overrides={"run.workers": 5})
    assert effective_options(overridden, job).workers == 5
    assert effective_options(overridden, job, {"workers": 6, "timeout": "2m"}).workers == 6
    assert effective_options(staging, job).grace == 5.0
    assert effective_options(staging, job).retries == 9


def test_every_option_knows_its_origin(load: Load) -> None:
    settings = load(FULL, profile="staging", environ={"BATCHRUN_RUN_THREADS": "4"})
    assert option_origins(settings, a_job(grace=5.0), {"limit": 3}) == {
        "grace": "@job send",
        "workers": "profile staging (config.toml:11)",
        "timeout": "config.toml:4",
        "retries": "profile staging (config.toml:13)",
        "threads": "environment BATCHRUN_RUN_THREADS",
        "limit": "command line --limit",
    }


def test_values_of_the_command_line_are_named_by_their_option(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"^--max-failures: 'x' is neither a number"):
        effective_options(load(), None, {"max_failures": "x"})
    assert refusal(load, overrides={"run.workers": -1}).startswith("--workers: -1 is not a whole number")
    assert refusal(load, overrides={"database.url": "x"}).startswith("--database-url: this is no database URL")


def test_an_unknown_profile_names_the_known_ones(load: Load) -> None:
    assert (
        refusal(load, FULL, profile="stagin")
        == "--profile: config.toml has no profile 'stagin'; did you mean 'staging'? it has staging"
    )
    assert "there is no config.toml" in refusal(load_none(load), environ={"BATCHRUN_PROFILE": "x"})


def load_none(load: Load) -> Load:
    settings = load()
    if settings.file:
        settings.file.unlink()
    return load


def test_none_undoes_what_a_lower_layer_set(load: Load) -> None:
    settings = load('[run]\ntimeout = 5\nmax_failures = "2%"', environ={"BATCHRUN_RUN_TIMEOUT": "none"})
    assert effective_options(settings).timeout is None
    assert effective_options(settings).max_failures == FailureLimit(percent=2.0)


def test_settings_of_a_job_have_defaults_and_follow_the_order(load: Load) -> None:
    job = Job("send", print, settings={"enabled": False, "if_running": "wait"})
    made = job_settings(
        load(FULL + "[profile.p.jobs.send]\nenabled = true\n[profile.p.run]\non_unfinished = 'resume'", profile="p"), job
    )
    assert (made.schedule, made.timezone, made.if_running, made.enabled) == ("0 3 * * *", None, "wait", True)
    assert made.on_unfinished == "resume"


def test_parameters_of_a_job_come_from_its_table_and_the_command_line(load: Load) -> None:
    settings = load(FULL)
    assert job_parameters(settings, a_job(), {"until": "2027-01-01"}).keys() == {"since", "until"}
    assert parameter_places(settings, a_job())["since"] == "config.toml:8:1: jobs.send.since"


def test_a_parameter_may_be_named_like_a_method_of_the_model(load: Load) -> None:
    settings = load("[jobs.send]\ncopy = 1\nfields = 2\nmodel_dump = 3\nchecks = 4")
    assert settings.jobs["send"].parameters == {"copy": 1, "fields": 2, "model_dump": 3, "checks": 4}


def test_a_table_of_an_unknown_job_is_told(load: Load) -> None:
    assert unknown_jobs(load(FULL), ["sent"]) == ["config.toml:6:2: jobs.send: there is no job send; did you mean 'sent'?"]
    assert unknown_jobs(load(FULL), ["send"]) == []


def test_retry_on_names_classes_that_are_imported_when_needed(load: Load) -> None:
    settings = load('[run]\nretry_on = ["ConnectionError", "json.decoder.JSONDecodeError"]')
    assert settings.run["retry_on"] == ["ConnectionError", "json.decoder.JSONDecodeError"]
    assert [one.__name__ for one in effective_options(settings).retry_on] == ["ConnectionError", "JSONDecodeError"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoSuchError", "'NoSuchError' does not exist; write it as it is imported"),
        ("json.dumps", "'json.dumps' names no exception class"),
        ("no.such.module.Error", "the module of 'no.such.module.Error' cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_retry_on_class_that_cannot_be_had_is_refused(load: Load, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"config.toml:2:1: run.retry_on: {message}")):
        effective_options(load(f'[run]\nretry_on = ["{name}"]'))


# ---------------------------------------------------------------------------------------------------- environment
def test_variables_are_read_as_what_their_key_takes(load: Load) -> None:
    environ = {
        "BATCHRUN_RUN_WORKERS": "4",
        "BATCHRUN_RUN_READ_ONLY": "true",
        "BATCHRUN_RUN_TIMEOUT": "2m",
        "BATCHRUN_RUN_MAX_FAILURES": "3",
        "BATCHRUN_RUN_TRANSACTION": "none",
        "BATCHRUN_RUN_RETRY_ON": "OSError, KeyError",
        "BATCHRUN_DATABASE_CONNECT_TIMEOUT": "2.5",
        "BATCHRUN_LEDGER_KEEP_DAYS": "none",
        "BATCHRUN_NOTIFY_ON_FAILURE": "mail -s 'it failed' ops",
        "BATCHRUN_TEST_SERVER": "left alone",
        "BATCHRUN_DEBUG": "1",
    }
    settings = load(environ=environ)
    assert settings.run == {
        "workers": 4,
        "read_only": True,
        "timeout": 120.0,
        "max_failures": FailureLimit(3),
        "transaction": "none",
        "retry_on": ["OSError", "KeyError"],
    }
    assert settings.database.connect_timeout == 2.5
    assert settings.ledger.keep_days is None
    assert settings.notify.on_failure == ["mail", "-s", "it failed", "ops"]


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("BATCHRUN_DATBASE_URL", "x", "BATCHRUN_DATBASE_URL: there is no such variable; did you mean BATCHRUN_DATABASE_URL?"),
        ("BATCHRUN_X", "x", "BATCHRUN_X: there is no such variable; they are named BATCHRUN_<TABLE>_<KEY>"),
        ("BATCHRUN_DATABASE_URL", "", "BATCHRUN_DATABASE_URL: this is set but empty; give it a value or unset it"),
        ("BATCHRUN_RUN_WORKERS", "2.5", "BATCHRUN_RUN_WORKERS: '2.5' is not a whole number from 0 to 1,024"),
        ("BATCHRUN_RUN_READ_ONLY", "maybe", "BATCHRUN_RUN_READ_ONLY: 'maybe' is not true or false"),
        ("BATCHRUN_DATABASE_URL", "s3cret", "BATCHRUN_DATABASE_URL: this is no database URL"),
    ],
)
def test_a_wrong_variable_is_named(load: Load, variable: str, text: str, message: str) -> None:
    assert refusal(load, environ={variable: text}).startswith(message)


# ------------------------------------------------------------------------------------------------- URLs and secrets
def test_a_sqlite_file_is_relative_to_the_folder(load: Load, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert load("[database]\nurl = 'sqlite:///data/x.db'", cwd=tmp_path / "sub").database.url == f"sqlite:///{tmp_path}/data/x.db"
    assert load("[database]\nurl = 'sqlite:////data/x.db?timeout=5'").database.url == "sqlite:////data/x.db?timeout=5"


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true", "sqlite+pysqlite:///"]
)
def test_a_database_in_memory_is_refused_with_the_reason(load: Load, url: str) -> None:
    assert "each worker would see an empty one of its own; use a file" in refusal(load, environ={"BATCHRUN_DATABASE_URL": url})


def test_a_variable_in_a_value_is_put_in(load: Load) -> None:
    text = '[database]\nurl = "postgresql://app:${PW}@h/db"\n[run]\nworkers = "${N}"\n[jobs.send]\nnote = "$${PW}"'
    settings = load(text, environ={"PW": "s3cret", "N": "3"})
    assert settings.database.url == "postgresql://app:s3cret@h/db"
    assert settings.run["workers"] == 3
    assert settings.jobs["send"].parameters == {"note": "${PW}"}
    assert settings.secrets == ("s3cret",)


def test_an_unset_variable_is_named_and_no_url_printed(load: Load) -> None:
    message = refusal(load, '[database]\nurl = "postgresql://app:${PW}@secret-host/db"')
    assert message.startswith("config.toml:2:1: database.url: the environment variable PW is not set")
    assert "secret-host" not in message


def test_an_unset_variable_of_an_overruled_value_does_not_matter(load: Load) -> None:
    text = '[database]\nurl = "${URL}"\n[profile.prod.database]\nurl = "${PROD_URL}"\n[jobs.other]\nkey = "${KEY}"'
    assert load(text, overrides={"database.url": "postgresql://h/db"}).database.url == "postgresql://h/db"
    with pytest.raises(ConfigError, match=r"jobs\.other\.key: the environment variable KEY is not set"):
        job_parameters(load(text, environ={"URL": "postgresql://h/d"}), Job("other", print))


def test_a_variable_inside_a_list_or_inline_table_counts_too(load: Load) -> None:
    text = '[jobs.send]\nnested = {a = ["${X}"]}\n'
    assert load(text, environ={"X": "1"}).jobs["send"].parameters == {"nested": {"a": ["1"]}}
    with pytest.raises(ConfigError, match=r"config.toml:2:1: jobs\.send\.nested: the environment variable X is not set"):
        job_parameters(load(text), a_job())


@pytest.mark.parametrize(
    "text", ['run = "${X}"', 'jobs = "${X}"', 'jobs.a = "${X}"', 'profile = "${X}"', 'profile.a.run = "${X}"']
)
def test_a_variable_where_a_table_belongs_is_refused(load: Load, text: str) -> None:
    assert "this must be a table" in refusal(load, text)


def test_a_malformed_variable_is_refused(load: Load) -> None:
    assert "after ${ must come the name of a variable" in refusal(load, '[ledger]\nschema = "${my-schema}"')


def test_a_value_from_a_variable_is_not_shown_in_an_error(load: Load) -> None:
    message = refusal(load, '[run]\ntimeout = "${PW}"', environ={"PW": "s3cret"})
    assert message.startswith("config.toml:2:1: run.timeout: '${PW}' is no duration")


def test_a_url_file_is_read_from_the_folder(load: Load, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://app:s3cret@h/db\n")
    assert load("[database]\nurl_file = 'url'").database.url == "postgresql://app:s3cret@h/db"
    assert "config.toml:2:1: database.url_file cannot be read" in refusal(load, "[database]\nurl_file = 'nowhere'")


def test_url_and_url_file_together_are_refused(load: Load) -> None:
    message = refusal(load, "[database]\nurl = 'sqlite:///x'\nurl_file = 'y'")
    assert message == "config.toml:3:1: database.url_file: url is given too (config.toml:2); keep one of the two"


def test_a_url_above_overrules_a_url_file_below(load: Load) -> None:
    settings = load("[database]\nurl_file = 'nowhere'", environ={"BATCHRUN_DATABASE_URL": "postgresql://h/db"})
    assert settings.database.url == "postgresql://h/db"


def test_a_factory_leaves_no_url(load: Load) -> None:
    settings = load("[database]\nfactory = 'app.db:engine'")
    assert (settings.database.factory, settings.database.url) == ("app.db:engine", "")


def test_values_have_origins_and_no_secrets(load: Load) -> None:
    text = (
        '[database]\nurl = "postgresql://app:s3cret@h/db?password=s3cret"\n[notify]\nping_url = "https://ping.example/s3cret"\n'
        'on_failure = ["tell", "${TOKEN}"]\n[jobs.send]\napi_key = "s3cret"\nworkers = 2'
    )
    settings = load(
        text, environ={"TOKEN": "s3cret", "BATCHRUN_RUN_WORKERS": "2"}, overrides={"ledger.url": "postgresql://a:s3cret@h/l"}
    )
    shown = {value.name: value for value in settings.values()}
    assert "s3cret" not in repr(shown)
    assert "s3cret" not in repr(settings)
    assert shown["database.url"].value == "postgresql://app:***@h/db?password=***"
    assert shown["database.url"].origin == "config.toml:2"
    assert shown["database.url"].secret
    assert shown["ledger.url"].origin == "command line --ledger-url"
    assert shown["notify.on_failure"].value == ["tell", "${TOKEN}"]
    assert shown["run.workers"].origin == "environment BATCHRUN_RUN_WORKERS"
    assert shown["run.retries"].value == 3
    assert shown["run.retries"].origin == "built-in"
    assert shown["jobs.send.workers"].value == 2


def test_a_password_others_can_read_is_a_warning(load: Load, tmp_path: Path) -> None:
    settings = load("[database]\nurl = 'postgresql://a:s3cret@h/db'\n[jobs.send]\ntoken = 'abc'")
    (tmp_path / "config.toml").chmod(0o644)
    found = warnings(settings)
    assert [line.partition(", and")[0] for line in found] == [  # one for the file, whatever is in it
        "config.toml:2:1: database.url, config.toml:4:1: jobs.send.token: this is a secret",
    ]
    assert f"chmod 600 {tmp_path}/config.toml" in found[0]
    assert "s3cret" not in found[0]
    for mode, expected in ((0o640, 1), (0o604, 1), (0o600, 0), (0o400, 0)):  # bits, not access: root may read it anyway
        (tmp_path / "config.toml").chmod(mode)
        assert len(warnings(settings)) == expected


def test_a_password_in_a_profile_that_rests_and_a_ping_url_are_warned_about(load: Load, tmp_path: Path) -> None:
    text = "[notify]\nping_url = 'https://ping.example/abc'\n[profile.live.database]\nurl = 'postgresql://a:s3cret@h/db'"
    for profile in (None, "live"):
        settings = load(text, profile=profile)
        (tmp_path / "config.toml").chmod(0o644)
        (found,) = warnings(settings)
        assert found.startswith(
            "config.toml:2:1: notify.ping_url, config.toml:4:1: profile.live.database.url: this is a secret"
        ), found


def test_a_password_that_others_cannot_find_in_the_file_is_no_warning(load: Load, tmp_path: Path) -> None:
    nothing = load("[database]\nurl = 'sqlite:///work.db'\n[jobs.send]\nsince = 'abc'")
    (tmp_path / "config.toml").chmod(0o644)
    assert warnings(nothing) == []
    filled = load("[database]\nurl = 'postgresql://a:${PW}@h/db'\n[jobs.send]\ntoken = '${PW}'", environ={"PW": "s3cret"})
    (tmp_path / "config.toml").chmod(0o644)
    assert warnings(filled) == []


def test_a_url_file_that_others_can_read_is_a_warning(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "the url"
    file.write_text("postgresql://a:s3cret@h/db")
    settings = load("[database]\nurl_file = 'the url'")
    (tmp_path / "config.toml").chmod(0o644)
    file.chmod(0o644)
    found = f"the URL in {file} has a password, and others on this machine can read the file: chmod 600 '{file}'"
    assert warnings(settings) == [f"config.toml:2:1: database.url_file: {found}"]
    file.chmod(0o600)
    assert warnings(settings) == []


def test_a_file_of_somebody_else_is_no_warning(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load("[database]\nurl = 'postgresql://a:s3cret@h/db'")
    (tmp_path / "config.toml").chmod(0o644)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert warnings(settings) == []


# ------------------------------------------------------------------------------------------------------- TOML places
def test_places_are_found_in_every_form_of_toml() -> None:
    text = 'a.b = 1\n[t."x y"]\n"q" = """\n[no]\n"""\nl = [1, [2,\n 3], {k = "v"}]\n[[s]]\nn = 1\n[[s]]\nn = 2\n'
    found = find_places(text).found
    assert found["a", "b"] == Place(1, 1)
    assert found["t", "x y"] == Place(2, 2)
    assert found["t", "x y", "q"] == Place(3, 1)
    assert found["t", "x y", "l", 1, 1] == Place(7, 2)
    assert found["t", "x y", "l", 2, "k"] == Place(7, 7)
    assert found["s", 1, "n"] == Place(11, 1)
    assert find_places(text).twice == []
    assert find_places(text).of(("t", "nothing")) == Place(2, 2)


KEYS = st.text(alphabet="abcdefgh-_09", min_size=1, max_size=4)
VALUES = st.sampled_from(
    ["1", "true", '"# [x]"', "'''\n[y]\n'''", "[1, [2]]", "{a = 1, b = {c = 2}}", "2026-01-01", '"\\"="', "[\n 1, # c\n]"]
)
TABLES = st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4)


@given(TABLES)
def test_every_key_that_is_read_has_a_place_where_its_name_stands(tables: dict[str, dict[str, str]]) -> None:
    text = "".join(f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) for name, keys in tables.items())
    found, lines = find_places(text), text.split("\n")
    for name, keys in tomllib.loads(text).items():
        for path in [(name,), *((name, key) for key in keys)]:
            place = found.found[path]
            assert lines[place.line - 1][place.column - 1 :].startswith(str(path[-1]))
    assert found.twice == []


@given(st.text(alphabet="[]{}=.,\"'#\\\n ab1"))
def test_looking_for_places_never_raises(text: str) -> None:
    find_places(text)
