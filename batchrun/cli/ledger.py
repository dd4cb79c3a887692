"""``batchrun ledger``: the tables that runs are recorded in."""

from __future__ import annotations

import typer

from batchrun.cli.calling import Call, ConfigOption, DebugOption, ProfileOption, UrlOption, command


def add_to(app: typer.Typer) -> None:
    """Add the group to the application."""
    app.add_typer(group, name="ledger")


group = typer.Typer(help="The tables that runs are recorded in.", rich_markup_mode=None)


@group.callback(invoke_without_command=True)
def ledger(
    ctx: typer.Context,
    config: ConfigOption = None,
    database_url: UrlOption = None,
    profile: ProfileOption = None,
    debug: DebugOption = False,
) -> None:
    """Keep the options that stand before the command's name."""
    given = {"config": config, "database_url": database_url, "profile": profile, "debug": debug}
    ctx.obj = (ctx.obj or Call()).with_options(given)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)


@command(group, "sql")
def sql(call: Call) -> int:
    """Print the statements that make the ledger's tables.

    batchrun makes them by itself where its role may create tables; where it may not,
    give these to whoever may. Nothing is changed.
    """
    from batchrun.api import ledger_ddl

    call.out.result(ledger_ddl(call.ledger_place()).rstrip("\n"))
    return 0
