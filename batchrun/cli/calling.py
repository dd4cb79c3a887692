"""What every command shares: the options --config, --database-url, --profile, --debug, and how errors end it."""

from __future__ import annotations

import inspect
import os
import shlex
import traceback
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from batchrun.cli.output import Output
from batchrun.cli.signals import Interrupted
from batchrun.errors import BatchrunError

if TYPE_CHECKING:
    from batchrun.api import Place
    from batchrun.config import Settings

Body = TypeVar("Body", bound=Callable[..., int])

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="Read this config.toml. Default: $BATCHRUN_CONFIG, else the nearest one upwards."
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--database-url", metavar="URL", help="Work and record here. Default: [database] url, else batchrun.db beside it."
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="Put [profile.NAME] over the settings. Default: $BATCHRUN_PROFILE."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors, as BATCHRUN_DEBUG=1 does.")]
SHARED: dict[str, Any] = {"config": ConfigOption, "database_url": UrlOption, "profile": ProfileOption, "debug": DebugOption}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the command line: where it writes, and the options that every command takes."""

    out: Output = field(default_factory=Output)
    config: str | None = None
    database_url: str | None = None
    profile: str | None = None
    debug: bool = False

    def with_options(self, given: dict[str, Any]) -> Call:
        """What stands after a command's name wins over what stands before it."""
        return replace(self, **{name: value for name, value in given.items() if value})

    @property
    def command(self) -> str:
        """How to call batchrun for the same project again; a URL, which may hold a password, is not repeated."""
        words = ["batchrun"]
        words += ["--config", shlex.quote(self.config)] if self.config else []
        words += ["--profile", shlex.quote(self.profile)] if self.profile else []
        return " ".join(words + (["--database-url", "URL"] if self.database_url else []))

    def settings(self, **given: str | None) -> Settings:
        """Load the settings, and learn from them what must not be shown. Raises ConfigError.

        given: more of the command line, as table__key.
        """
        from batchrun.config import load_settings, warnings

        self.out.redact.add(*_secrets(self.database_url))
        said = {"database__url": self.database_url, **given}
        overrides = {name.replace("__", "."): value for name, value in said.items() if value is not None}
        found = load_settings(config=self.config, profile=self.profile, overrides=overrides)
        self.out.redact.add(*found.secrets)
        for sentence in warnings(found):
            self.out.warn(sentence)
        return found

    def project(self, **given: str | None) -> Settings:
        """The settings of a project that can have jobs. Raises ConfigError where there is no config.toml."""
        found = self.settings(**given)
        found.need_file()
        return found

    def place(self, settings: Settings) -> Place:
        """Where runs work and record."""
        from batchrun.api import place_of
        from batchrun.loading import install_jobs_package

        if settings.database.factory:
            install_jobs_package(settings.folder)
        return place_of(settings)

    def ledger_place(self) -> Place:
        """The same for commands that only look: a database that was named will do, without a config.toml."""
        found = self.settings()
        named = {path[1] for layer in found.layers for path, _ in layer.leaves() if path[0] in ("database", "ledger")}
        if not named & {"url", "url_file", "factory"}:
            found.need_file()
        return self.place(found)

    def carry_out(self, body: Callable[[], int]) -> int:
        """Run a command and return its exit code; errors become one message on stderr."""
        with self.out.results_only():
            try:
                return body()
            except Interrupted as interrupted:
                self.out.say(f"Interrupted by {interrupted} before the run was open.")
                return interrupted.exit_code
            except KeyboardInterrupt:
                self.out.say("Interrupted.")
                return 130
            except BatchrunError as error:
                self._fail(error, str(error))
                return error.exit_code
            except Exception as error:
                hint = "" if self._shows_tracebacks else " This should not happen; run again with --debug to see where."
                self._fail(error, f"{type(error).__name__}: {error}.{hint}")
                return 1

    @property
    def _shows_tracebacks(self) -> bool:
        return self.debug or os.environ.get("BATCHRUN_DEBUG", "").strip().lower() in ("1", "true", "yes", "on")

    def _fail(self, error: BaseException, text: str) -> None:
        if self._shows_tracebacks:
            self.out.say("".join(traceback.format_exception(error)).rstrip("\n"))
        self.out.say(text, "ERROR")


def _secrets(url: str | None) -> list[str]:
    from batchrun.masking import url_secrets

    return url_secrets(url or "")


class PlainCommand(TyperCommand):
    """Help that reads at 80 columns: the usage as people write it, a command's own options before the shared ones."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """``JOB [name=value ...] [OPTIONS]``."""
        return [*(str(one.metavar) for one in self.params if one.param_type_name == "argument"), "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Three sections: arguments, options, and the options of every command."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Options of every command": []}
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                sections["Arguments"].append((str(param.metavar), str(getattr(param, "help", ""))))
            elif record := param.get_help_record(ctx):
                sections["Options of every command" if param.name in (*SHARED, "help") else "Options"].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def command(app: typer.Typer, name: str) -> Callable[[Body], Body]:
    """Make ``body(call, ...) -> exit code`` a command that also takes the shared options."""

    def register(body: Body) -> Body:
        hints = typing.get_type_hints(body, include_extras=True)
        own = [one.replace(annotation=hints[one.name]) for one in list(inspect.signature(body).parameters.values())[1:]]
        keyword = inspect.Parameter.KEYWORD_ONLY
        ctx = inspect.Parameter("ctx", keyword, annotation=typer.Context)
        shared = [
            inspect.Parameter(key, keyword, default=False if key == "debug" else None, annotation=kind)
            for key, kind in SHARED.items()
        ]

        def called(**given: Any) -> None:
            context = given.pop("ctx")
            call = (context.obj or Call()).with_options({key: given.pop(key) for key in SHARED})
            raise typer.Exit(call.carry_out(lambda: body(call, **given)))

        called.__doc__ = body.__doc__
        called.__signature__ = inspect.Signature([ctx, *(one.replace(kind=keyword) for one in own), *shared])  # type: ignore[attr-defined]
        called.__annotations__ = {"ctx": typer.Context, **{one.name: one.annotation for one in own}, **SHARED}
        app.command(name, cls=PlainCommand, short_help=(inspect.getdoc(body) or "").partition("\n")[0])(called)
        return body

    return register


def keep_shared(ctx: typer.Context, given: dict[str, Any]) -> None:
    """Keep the options that stand before a command's name; without one, show the help."""
    ctx.obj = (ctx.obj or Call()).with_options(given)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)


def group_of(help_text: str) -> typer.Typer:
    """A group of commands, which takes the shared options as well."""
    made = typer.Typer(help=help_text, rich_markup_mode=None)

    @made.callback(invoke_without_command=True)
    def shared(
        ctx: typer.Context,
        config: ConfigOption = None,
        database_url: UrlOption = None,
        profile: ProfileOption = None,
        debug: DebugOption = False,
    ) -> None:
        keep_shared(ctx, {"config": config, "database_url": database_url, "profile": profile, "debug": debug})

    return made


def existing_folder(text: str | None) -> Path:
    """A folder named on the command line; the working directory where none is."""
    return Path(text or ".").expanduser()
