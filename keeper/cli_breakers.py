"""`keeper breakers`: what stopped the keeper, and a person's word. Options in, a document or a few lines out."""

from __future__ import annotations

from typing import Annotated

import typer

from keeper.terminal import DEFAULT_CONFIG, Config, Json, say

breakers_app = typer.Typer(
    help="What stopped the keeper by itself.", no_args_is_help=True, rich_markup_mode=None
)

Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever reads it later.")]


@breakers_app.command("list")
def listed(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """List what is tripped, on which numbers, and how each lets go; works beside a running daemon."""
    from keeper import render
    from keeper.commands import breakers

    say(breakers.listed(config), render.breakers_list, json)


@breakers_app.command("clear")
def clear(
    name: Annotated[str, typer.Argument(help="The breaker, as `keeper breakers list` names it.")],
    reason: Reason,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Let the keeper go on: a person looked at what tripped a breaker. The daemon must not run."""
    from keeper import render
    from keeper.commands import breakers

    say(breakers.cleared(config, name, reason), render.breakers_cleared, json)


@breakers_app.command("acknowledge")
def acknowledge(
    protocol: Annotated[str, typer.Argument(help='Whose contract it is, or "global".')],
    contract: Annotated[str, typer.Argument(help="The contract's address.")],
    code_hash: Annotated[str, typer.Argument(help="The hash of the code it runs now.")],
    reason: Reason,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Accept the new code of a watched contract: a person has read it. The daemon must not run."""
    from keeper import render
    from keeper.commands import breakers

    document = breakers.acknowledged(config, protocol, contract, code_hash, reason)
    say(document, render.breakers_cleared, json)
