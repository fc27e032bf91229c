"""`keeper pause`: what signers and guardians type. Options in, a document or a few lines out, no decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keeper.errors import ConfigError
from keeper.terminal import DEFAULT_CONFIG, Config, Json, builds, say, wait

pause_app = typer.Typer(
    help="The emergency pause, and the tools of its signers.", no_args_is_help=True, rich_markup_mode=None
)

File = Annotated[Path, typer.Argument(help="A proposal, NAME.safetx.json.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write to this file.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not ask the chain; say what was not checked.")]
Despite = Annotated[
    bool,
    typer.Option("--despite-red-flags", help="Go on although red flags stand: every one of them is meant."),
]
Nonce = Annotated[
    int | None,
    typer.Option("--nonce", min=0, help="The Safe's nonce it is for; else the next, asked of the chain."),
]
Note = Annotated[str, typer.Option("--note", help="What it is for; else what its calls do.")]
Scope = Annotated[str, typer.Argument(help="global, or the name of a configured protocol.")]


@pause_app.command("status")
def status(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Say for every scope whether it is paused, since when and why."""
    from keeper import commands, render

    say(wait(commands.pause_status(config)), render.pause_status, json)


@pause_app.command("build")
def build(
    action: Annotated[
        str,
        typer.Argument(
            help="pause SCOPE REASON [INCIDENT], schedule SCOPE, veto SCOPE, add-guardian WHO, "
            "remove-guardian WHO [SCOPE to restart], operator WHO on|off, rotate-operator OLD NEW, target, feed, "
            "venue, flash-source, slippage BPS, swap-owner OLD NEW, add-owner WHO N, remove-owner WHO N, threshold N, "
            "reject (nothing, to use up a nonce). Without its words it says which it takes."
        ),
    ],
    given: Annotated[list[str] | None, typer.Argument(help="What the action takes.", metavar="WORDS")] = None,
    config: Config = DEFAULT_CONFIG,
    nonce: Nonce = None,
    note: Note = "",
    out: Out = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Propose a transaction of the Safe: a new, unsigned NAME.safetx.json."""
    from keeper import render
    from keeper.commands import pause

    work = pause.build(config, action, given or [], nonce=nonce, note=note, out=out, offline=offline)
    say(wait(work), render.proposal, json)


@pause_app.command("schedule")
def schedule(
    scope: Scope,
    config: Config = DEFAULT_CONFIG,
    nonce: Nonce = None,
    note: Note = "",
    out: Out = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Propose that the Safe schedules a restart: `build schedule SCOPE`."""
    build("schedule", [scope], config, nonce, note, out, offline, json)


@pause_app.command("veto")
def veto(
    scope: Scope,
    guardian: Annotated[
        bool,
        typer.Option("--guardian", help="Send it now with KEEPER_GUARDIAN_PRIVATE_KEY, without the Safe."),
    ] = False,
    config: Config = DEFAULT_CONFIG,
    nonce: Nonce = None,
    note: Note = "",
    out: Out = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Take a scheduled restart back: propose it to the Safe, or do it as a guardian."""
    if not guardian:
        build("veto", [scope], config, nonce, note, out, offline, json)
        return
    from keeper import render
    from keeper.commands import guardian as guardians

    say(wait(guardians.veto(config, scope)), render.proved, json)


@pause_app.command("show")
def show(file: File, config: Config = DEFAULT_CONFIG, offline: Offline = False, json: Json = False) -> None:
    """Say what a proposal does, its hashes as a hardware wallet shows them, who signed, and every red flag."""
    from keeper import render
    from keeper.commands import pause

    document = wait(pause.show(config, file, builds, offline=offline))
    say(document, render.pause_show, json)
    if not document["ok"]:
        raise typer.Exit(1)


@pause_app.command("sign")
def sign(
    file: File,
    signature: Annotated[
        str | None, typer.Option("--signature", help="What a wallet signed, 65 bytes in hex; needs --owner.")
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Whose signature it is.")] = None,
    config: Config = DEFAULT_CONFIG,
    out: Out = None,
    offline: Offline = False,
    despite_red_flags: Despite = False,
    json: Json = False,
) -> None:
    """Add a wallet's signature to a proposal, or sign with KEEPER_SIGNER_PRIVATE_KEY (for drills)."""
    from keeper import render
    from keeper.commands import pause

    work = pause.sign(
        config,
        file,
        builds,
        signature=signature,
        owner=owner,
        out=out,
        offline=offline,
        despite_red_flags=despite_red_flags,
    )
    say(wait(work), render.proposal, json)


@pause_app.command("merge")
def merge(
    files: Annotated[list[Path], typer.Argument(help="Files of one proposal, each with some signatures.")],
    out: Annotated[Path, typer.Option("--out", help="The file with all of them.")],
    json: Json = False,
) -> None:
    """Gather the signatures of several files of one transaction into one file."""
    from keeper import render
    from keeper.commands import pause

    say(pause.merge(files, out), render.proposal, json)


@pause_app.command("simulate")
def simulate(file: File, config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Try a proposal on the present state, also before all have signed, and name the cause of every failure."""
    from keeper import render
    from keeper.commands import pause

    document = wait(pause.simulate(config, file, builds))
    say(document, render.simulated, json)
    if not document["ok"]:
        raise typer.Exit(1)


@pause_app.command("exec")
def execute(
    file: File, config: Config = DEFAULT_CONFIG, despite_red_flags: Despite = False, json: Json = False
) -> None:
    """Send a signed proposal with KEEPER_SENDER_PRIVATE_KEY, and prove by the contracts' state that it happened."""
    from keeper import render
    from keeper.commands import pause

    work = pause.execute(config, file, builds, despite_red_flags=despite_red_flags)
    say(wait(work), render.proved, json)


@pause_app.command("unpause")
def unpause(scope: Scope, config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Restart a scope whose scheduled delay has passed, with KEEPER_SENDER_PRIVATE_KEY; anybody may."""
    from keeper import render
    from keeper.commands import guardian

    say(wait(guardian.unpause(config, scope)), render.proved, json)


@pause_app.command("guardian")
def guardian_pause(
    scope: Annotated[str, typer.Argument(help="global, or the name of a configured protocol.")] = "global",
    reason: Annotated[str, typer.Option("--reason", help="1 to 8 capital letters or digits.")] = "EXPLOIT",
    incident: Annotated[
        str | None, typer.Option("--incident", help="Up to 32 characters, or 0x and 64 digits.")
    ] = None,
    send: Annotated[
        bool, typer.Option("--send", help="Pause on chain now, instead of writing a message to relay.")
    ] = False,
    relay: Annotated[
        Path | None,
        typer.Option("--relay", help="Send somebody's signed message with KEEPER_SENDER_PRIVATE_KEY."),
    ] = None,
    hand_over: Annotated[
        Path | None,
        typer.Option("--hand-over", help="Give somebody's signed message to the daemon that runs here."),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    out: Out = None,
    json: Json = False,
) -> None:
    """Stop alone, as a guardian with KEEPER_GUARDIAN_PRIVATE_KEY: a signed NAME.pause.json, or a transaction."""
    from keeper import render
    from keeper.commands import guardian

    if (relay is not None) + (hand_over is not None) + send > 1:
        raise ConfigError("--send, --relay and --hand-over are three ways to stop; give one of them.")
    if relay is not None:
        say(wait(guardian.relay(config, relay)), render.proved, json)
        return
    if hand_over is not None:
        say(wait(guardian.hand_over(config, hand_over)), render.handed_over, json)
        return
    document = wait(guardian.pause(config, scope, reason, incident, send=send, out=out))
    say(document, render.proved if send else render.guardian_pause, json)


@pause_app.command("drill")
def drill(
    guardian: Annotated[str, typer.Option("--guardian", help="The guardian who is to pause.")],
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Rehearse pause, veto and restart on a fork of the chain, and time them; the real chain is only read."""
    from keeper import render
    from keeper.lab import drill as rehearsal

    document = wait(rehearsal.run(config, guardian))
    say(document, render.drill, json)
    if not document["ok"]:
        raise typer.Exit(1)


@pause_app.command("page")
def page(
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: one that is free.")] = 0,
    config: Config = DEFAULT_CONFIG,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Serve the signers' page for a browser with a wallet, on 127.0.0.1, with the files of this folder."""
    from keeper import render
    from keeper.page.server import serve

    wait(
        serve(
            config,
            builds,
            folder=Path(),
            port=port,
            offline=offline,
            ready=lambda document: say(document, render.page, json),
        )
    )
