"""``batchrun``: the application, and the console script's ``main``."""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import Annotated, Any

import typer

from batchrun.cli import checking, controlling, ledger, looking, projects, reports, running, scheduling, verifying
from batchrun.cli.calling import Call, ConfigOption, DebugOption, ProfileOption, UrlOption, keep_shared
from batchrun.cli.output import Output, hold_standard_streams, let_go
from batchrun.reporting.streams import GuardedStream

HELP = """Run one function over many items against a database, in parallel, each effect committed exactly once.

A project is a config.toml with a folder jobs/ beside it; batchrun init makes one."""

START_UP = 100_000
"""So many new objects before the collector looks for garbage, for 700: what imports make stays, and it would be looked through
some two hundred times, a tenth of their time. A run sets it back when all is imported."""

app = typer.Typer(
    name="batchrun",
    help=HELP,
    rich_markup_mode=None,  # plain help: it is quick, and reads the same in a pipe
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchrun {_version()}")
        raise typer.Exit(0)


def _version() -> str:
    import importlib.metadata  # it brings the e-mail package along

    try:
        return importlib.metadata.version("batchrun-db")
    except importlib.metadata.PackageNotFoundError:
        return "(from a folder where it is not installed)"


@app.callback(invoke_without_command=True)
def batchrun(
    ctx: typer.Context,
    config: ConfigOption = None,
    database_url: UrlOption = None,
    profile: ProfileOption = None,
    debug: DebugOption = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep the options that stand before the command's name."""
    keep_shared(ctx, {"config": config, "database_url": database_url, "profile": profile, "debug": debug})


running.add_to(app)
controlling.add_to(app)
looking.add_to(app)
verifying.add_to(app)
reports.add_to(app)
projects.add_to(app)
checking.add_to(app)
scheduling.add_to(app)
ledger.add_to(app)


def run_arguments(arguments: list[str], out: Output) -> int:
    """Carry a command line out and return its exit code. Never raises."""
    try:
        code: Any = app(arguments, prog_name="batchrun", standalone_mode=False, obj=Call(out))
    except typer.TyperException as error:  # a usage error
        out.say(_usage_message(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        out.say(f"{type(error).__name__}: {error}", "ERROR")
        return 1
    return code if isinstance(code, int) else 0


def _usage_message(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    hint = f"\nTry '{_plain_path(context)} --help'." if context is not None else ""
    near = getattr(error, "possibilities", None)
    message = f"{error.message}. Did you mean {near[0]}?" if near else error.format_message()
    return f"Error: {message}{hint}"


def _plain_path(context: Any) -> str:
    """``batchrun ledger sql``, without the arguments of the groups above it."""
    names: list[str] = []
    while context is not None:
        names.insert(0, context.info_name or "")
        context = context.parent
    return " ".join(names)


def main() -> None:
    """The console script."""
    gc.set_threshold(START_UP)
    hold_standard_streams()
    out = Output(owns_process=True)
    with (
        contextlib.redirect_stdout(GuardedStream(sys.stdout)),
        contextlib.redirect_stderr(out.err),
    ):  # help, too, may lose its reader
        code = run_arguments(sys.argv[1:], out)
    let_go(sys.stdout)
    let_go(sys.stderr)
    if preloading := sys.modules.get("batchrun.execution.preloading"):
        preloading.end()
    gc.freeze()  # else the interpreter, at its end, looks through all that was imported: a tenth of a second for SQLAlchemy
    sys.exit(code)
