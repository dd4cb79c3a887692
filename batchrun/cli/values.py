"""From the texts of the command line to a job, its parameters and the options of its run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchrun.errors import ConfigError

if TYPE_CHECKING:
    from batchrun.cli.calling import Call
    from batchrun.config import Settings
    from batchrun.jobs import Job
    from batchrun.sources.sampling import Sample


def given_options(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Read the options that were given, by their names in RunOptions, as JSON can keep them. Raises ConfigError."""
    from batchrun.config_layers import option_name
    from batchrun.options import checked_option

    made: dict[str, Any] = {}
    for name, text in texts.items():
        if text is None:
            continue
        made[name] = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and name not in ("timeout", "max_failures") else text
        try:
            checked_option(name, made[name])
        except ValueError as error:
            raise ConfigError(f"{option_name(('run', name))}: {error}") from None
    return made


def given_sample(sample: str | None, seed: str | None, limit: str | None) -> Sample | None:
    """Read --sample and --seed. Raises ConfigError for what is none, and together with --limit."""
    from batchrun.sources.sampling import check_alone, sample_of

    check_alone(sample, limit, seed)
    if seed is not None and not re.fullmatch(r"[0-9]{1,18}", seed):
        raise ConfigError(f"--seed: {seed!r} is not a whole number from 0, such as 7")
    try:
        return None if sample is None else sample_of(sample, None if seed is None else int(seed))
    except ValueError as error:
        raise ConfigError(f"--sample: {error}") from None


def load(call: Call, settings: Settings, name: str, given: Mapping[str, Any]) -> Job:
    """Import a job and check it for the transaction it will run with. Warns of what is wrong elsewhere."""
    from batchrun.config import unknown_jobs
    from batchrun.loading import find_jobs, load_job

    def warn(sentence: str) -> None:
        call.out.warn(sentence)

    job = load_job(settings.folder, name, transaction=_transaction(settings, name, given), warn=warn)
    for sentence in unknown_jobs(settings, [one.name for one in find_jobs(settings.folder, lambda known: None)]):
        warn(sentence)
    return job


def _transaction(settings: Settings, name: str, given: Mapping[str, Any]) -> str | None:
    """What the command line or the settings say; None where they leave it to the decorator."""
    said = given.get("transaction")
    for layer in reversed(settings.layers):
        leaves = dict(layer.leaves())
        for path in (("jobs", name, "transaction"), ("run", "transaction")):
            said = said or leaves.get(path)
    return said if isinstance(said, str) else None


def given_params(call: Call, settings: Settings, job: Job, arguments: Sequence[str]) -> dict[str, object]:
    """The parameters given by config.toml and by name=value, the latter over the former; not yet typed."""
    from batchrun.config import job_parameters
    from batchrun.masking import names_secret
    from batchrun.parameters import parameters_of, secrets_in

    known = parameters_of(job)
    texts: dict[str, str] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        secret = names_secret(name) or (name in known and known[name].secret)
        if secret:
            call.out.redact.add(text)
        if not equals or not name or name in texts:
            wrong = "is given twice" if name in texts else "is no parameter: they are written name=value"
            raise ConfigError("\n".join([f"{name if secret else argument!r} {wrong}", *parameter_lines(job)]))
        texts[name] = text
    given = job_parameters(settings, job, texts)
    call.out.redact.add(*(str(given[name]) for name in known if known[name].secret and name in given))
    call.out.redact.add(*secrets_in({name: one.default for name, one in known.items()}))
    return given


def typed_params(call: Call, settings: Settings, job: Job, arguments: Sequence[str]) -> dict[str, Any]:
    """The values of all parameters of a new run. Raises ConfigError with all that is wrong and the job's parameters."""
    from batchrun.config import parameter_places
    from batchrun.parameters import parse_params, secrets_in

    given = given_params(call, settings, job, arguments)
    ours = {argument.partition("=")[0] for argument in arguments}
    places = {name: place for name, place in parameter_places(settings, job).items() if name not in ours}
    values = parse_params(job, given, places=places)
    call.out.redact.add(*secrets_in(values))
    return values


def parameter_lines(job: Job) -> list[str]:
    """The job's parameters, one a line, for messages."""
    from batchrun.parameters import parameters_of

    known = parameters_of(job)
    if not known:
        return [f"{job.name} takes no parameters."]
    return [f"Parameters of {job.name}:", *(f"  {one}" for one in known.values())]
