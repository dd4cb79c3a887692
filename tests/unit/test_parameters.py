"""Parameters of a job: read from signatures, typed, written down, never showing a secret."""

from __future__ import annotations

import enum
import json
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from batchrun.errors import BatchrunError, ConfigError, JobError
from batchrun.jobs import Job
from batchrun.masking import MASK
from batchrun.parameters import (
    RESERVED,
    check_names,
    dump_params,
    masked,
    parameters_of,
    parse_params,
    restore_params,
    secrets_in,
    split_call,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


HUSH = SecretStr("hush")


def send(session: Session, order_id: int, *, factor: Decimal = Decimal(1), token: SecretStr = HUSH, ctx: Any = None) -> None:
    """Send each order."""


def orders(session: Session, since: date, factor: Decimal = Decimal(1), /, *, limit_to: int | None = None) -> list[int]:
    return [1]


def a_job(task: Any = send, items: Any = orders) -> Job:
    return Job("send", task, items)


def only(annotation: Any) -> Job:
    """A job with one parameter ``p`` of that type."""

    def items(p):  # type: ignore[no-untyped-def]
        return [p]

    items.__annotations__ = {"p": annotation}
    return Job("send", lambda item: None, items)


def refusal(call: Any, kind: type[BatchrunError] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_parameters_are_those_of_the_items_function_and_keyword_only_ones_of_the_task() -> None:
    assert [str(one) for one in parameters_of(a_job()).values()] == [
        "since: date (required)",
        "factor: Decimal = 1",
        "limit_to: int | None = None",
        "token: SecretStr = ***",
    ]


def test_without_an_items_function_only_the_tasks_own_count() -> None:
    assert list(parameters_of(replace(a_job(), items=None))) == ["factor", "token"]


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "3", 3),
        (float, "1.5", 1.5),
        (bool, "true", True),
        (bool, "no", False),
        (str, "none", "none"),
        (date, "2026-01-01", date(2026, 1, 1)),
        (datetime, "2026-01-01T12:00", datetime(2026, 1, 1, 12)),  # noqa: DTZ001 - what the user wrote has no zone
        (timedelta, "30s", timedelta(seconds=30)),
        (timedelta, "PT1H", timedelta(hours=1)),
        (Decimal, "1.10", Decimal("1.10")),
        (UUID, "12345678-1234-5678-1234-567812345678", UUID(int=0x12345678123456781234567812345678)),
        (Path, "a/b", Path("a/b")),
        (Color, "b", Color.BLUE),
        (Color, "BLUE", Color.BLUE),
        (Literal[1, "x"], "1", 1),
        (int | None, "none", None),
        (int | None, "", None),
        (int | None, "5", 5),
        (Color | None, "RED", Color.RED),
        (str | None, "none", "none"),
        (int | str, "5", "5"),
        (list[int], "1, 2", [1, 2]),
        (list[int], "[1, 2]", [1, 2]),
        (list[int], "", []),
        (list[Color], "r,BLUE", [Color.RED, Color.BLUE]),
        (list[date] | None, "2026-01-01", [date(2026, 1, 1)]),
        (tuple[int, str], "1,a", (1, "a")),
        (tuple[int, ...], "1,2,3", (1, 2, 3)),
        (set[int], "1,1,2", {1, 2}),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Annotated[int, "a note"], "4", 4),
    ],
)
def test_a_text_of_the_command_line_becomes_the_type(annotation: Any, text: str, value: object) -> None:
    job = only(annotation)
    made = parse_params(job, {"p": text})["p"]
    assert made == value
    assert type(made) is type(value)
    stored = json.loads(json.dumps(dump_params(job, {"p": made})))
    assert restore_params(job, stored, {}) == {"p": value}


def test_typed_values_stay_as_they_are() -> None:
    given = {"since": date(2026, 1, 1), "factor": Decimal("1.5"), "limit_to": 3, "token": SecretStr("x")}
    assert parse_params(a_job(), given) == given


def test_what_is_not_given_has_its_default() -> None:
    made = parse_params(a_job(), {"since": "2026-01-01"})
    assert made == {"since": date(2026, 1, 1), "factor": Decimal(1), "limit_to": None, "token": SecretStr("hush")}


def test_without_annotation_a_text_stays_a_text() -> None:
    def items(since=5):  # type: ignore[no-untyped-def]
        return [since]

    assert parse_params(Job("send", send, items), {"since": "7"})["since"] == "7"


def test_a_default_of_none_allows_none() -> None:
    def items(since: date = None) -> list[int]:  # type: ignore[assignment]  # noqa: RUF013 - people write it
        return []

    job = Job("send", lambda item: None, items)
    assert parse_params(job, {"since": "none"}) == {"since": None}
    assert restore_params(job, dump_params(job, {"since": None}), {}) == {"since": None}


def test_unknown_missing_and_mistyped_are_told_together_with_the_parameters() -> None:
    message = refusal(lambda: parse_params(a_job(), {"sinse": "x", "factor": "much", "workers": "3"}))
    assert message == (
        "sinse: there is no such parameter of send; did you mean 'since'?\n"
        "workers: this is an option, not a parameter of send: write --workers\n"
        "since: this parameter is missing\n"
        "factor: 'much' is no Decimal: input should be a valid decimal\n"
        "Parameters of send:\n"
        "  since: date (required)\n"
        "  factor: Decimal = 1\n"
        "  limit_to: int | None = None\n"
        "  token: SecretStr = ***"
    )


def test_a_parameter_of_the_task_that_goes_by_position_is_said_to_be_none_of_the_jobs() -> None:
    def pay(session: Any, key: int, pause: float = 0.0) -> None: ...

    with pytest.raises(ConfigError, match=r"^pause: the task takes 'pause' by position; a parameter of pay is keyword-only"):
        parse_params(Job("pay", pay), {"pause": "1"})
    with pytest.raises(ConfigError, match=r"^key: there is no such parameter of pay"):  # it is the item
        parse_params(Job("pay", pay), {"key": "1"})


def test_a_value_of_config_toml_is_refused_with_its_place() -> None:
    message = refusal(lambda: parse_params(only(int), {"p": "x"}, places={"p": "config.toml:3:1: jobs.send.p"}))
    assert message.startswith("config.toml:3:1: jobs.send.p: 'x' is no int: ")


def test_a_misspelt_option_in_the_table_of_a_job_is_met_with_the_option() -> None:
    message = refusal(
        lambda: parse_params(only(int), {"p": 1, "wrokers": 4}, places={"wrokers": "config.toml:3:1: jobs.send.wrokers"})
    )
    assert message.startswith("config.toml:3:1: jobs.send.wrokers: there is no such parameter of send; did you mean 'workers'?")


def test_a_job_without_parameters_says_so() -> None:
    job = Job("send", lambda item: None, lambda: iter(()))
    assert refusal(lambda: parse_params(job, {"x": "1"})).endswith("send takes no parameters.")


@given(st.text(min_size=6, alphabet="QXZ789"))
def test_a_secret_is_shown_nowhere(secret: str) -> None:
    job = only(list[SecretStr])
    values = parse_params(job, {"p": [secret]})
    assert values["p"][0].get_secret_value() == secret
    assert secrets_in(values) == [secret]
    for shown in (repr(values), str(masked(values)), json.dumps(dump_params(job, values)), str(parameters_of(job)["p"])):
        assert secret not in shown
    assert secret not in refusal(lambda: parse_params(job, {"p": {secret: secret}}))


def test_secrets_are_written_as_asterisks_and_must_be_given_again() -> None:
    def task(item: int, *, token: SecretStr) -> None: ...

    job = Job("send", task)
    stored = dump_params(job, parse_params(job, {"token": "s3cret"}))
    assert stored == {"token": MASK}
    assert restore_params(job, stored, {"token": "s3cret"}) == {"token": SecretStr("s3cret")}
    assert refusal(lambda: restore_params(job, stored, {})).startswith(
        "token: the ledger keeps no secrets; give this parameter again"
    )


def test_equal_values_are_written_alike() -> None:
    job = only(set[str])
    assert dump_params(job, {"p": {"b", "a", "c"}}) == {"p": ["a", "b", "c"]}
    assert list(dump_params(a_job(), {"since": 1, "factor": 2})) == ["factor", "since"]


def test_what_cannot_be_written_down_is_refused() -> None:
    message = "p: a object cannot be recorded as a parameter of send; pass text, numbers, dates or lists of them"
    assert refusal(lambda: dump_params(only(object), {"p": object()})) == message


def test_each_function_gets_its_own_and_both_get_what_is_shared() -> None:
    values = parse_params(a_job(), {"since": "2026-01-01", "factor": "2"})
    for_items, for_task = split_call(a_job(), values)
    assert for_items == {"since": date(2026, 1, 1), "factor": Decimal(2), "limit_to": None}
    assert for_task == {"factor": Decimal(2), "token": SecretStr("hush")}


def test_two_types_of_one_name_are_refused() -> None:
    def items(factor: int = 1) -> list[int]:
        return []

    message = refusal(lambda: parameters_of(a_job(items=items)), JobError)
    assert message.endswith(
        "the parameter factor of job send is int in its items function and Decimal in its task; write one type."
    )


def test_two_defaults_of_one_name_are_refused() -> None:
    def items(factor: Decimal = Decimal(2)) -> list[int]:
        return []

    assert "has one default in its items function and another in its task" in refusal(
        lambda: parameters_of(a_job(items=items)), JobError
    )


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_parameter_named_like_an_option_is_refused(name: str) -> None:
    space: dict[str, Any] = {}
    exec(f"def items({name}=1): ...", space)  # noqa: S102 - a function for each name
    message = refusal(lambda: check_names(Job("send", lambda item: None, space["items"])), JobError)
    assert (
        f"the parameter {name} of job send is named like an option of batchrun run; rename it, for example to {name}_value."
        in message
    )


def test_an_items_function_that_asks_for_ctx_is_refused() -> None:
    assert "asks for ctx; only its task gets one" in refusal(lambda: check_names(Job("send", print, lambda ctx: [])), JobError)


def test_a_type_that_is_imported_for_type_checkers_only_is_refused_where_it_matters() -> None:
    def items(session: Session, other: Session) -> list[int]:
        return []

    message = refusal(lambda: parameters_of(Job("send", print, items)), JobError)
    assert "the type 'Session' of the parameter other cannot be resolved: name 'Session' is not defined" in message
    assert "not only under `if TYPE_CHECKING`" in message


def test_a_type_of_an_enclosing_function_is_resolved() -> None:
    class Local(enum.Enum):
        ONE = "one"

    def items(kind: Local, other: list[Local] = []) -> list[Any]:  # noqa: B006
        return [Local.ONE]

    assert parse_params(Job("send", lambda item: None, items), {"kind": "one"})["kind"] is Local.ONE
