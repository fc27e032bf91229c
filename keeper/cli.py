"""The command line: options in, one document or a few lines out. Nothing is decided here.

Exit codes: 0 done, 1 a refused or failed operation, 2 bad configuration or arguments, 3 chain unreachable.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from keeper import log
from keeper.cli_breakers import breakers_app
from keeper.cli_pause import pause_app
from keeper.errors import KeeperError
from keeper.terminal import DEFAULT_CONFIG, Config, Json
from keeper.terminal import builds as _builds
from keeper.terminal import say as _print
from keeper.terminal import wait as _wait

app = typer.Typer(
    help="Keeps lending protocols solvent: finds unsafe accounts and liquidates them at a profit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ledger_app = typer.Typer(help="The record of every decision and transaction.", no_args_is_help=True)
lab_app = typer.Typer(help="Local chains of real protocols.", no_args_is_help=True)
bench_app = typer.Typer(help="Speed, as ratios measured in one run.", no_args_is_help=True)
app.add_typer(pause_app, name="pause")
app.add_typer(breakers_app, name="breakers")
app.add_typer(ledger_app, name="ledger")
app.add_typer(lab_app, name="lab")
app.add_typer(bench_app, name="bench")

Kind = Annotated[str | None, typer.Option("--kind", help="Only entries of this kind.")]


def main() -> NoReturn:
    """Run the command line; every error of ours is one sentence on stderr and an exit code."""
    gc.set_threshold(10_000)  # a seventh of the start would be walks over modules that stay
    log.configure("warning")  # stdout is for what was asked, whatever happens on the way to it
    try:
        app(standalone_mode=True)
    except KeeperError as error:
        print(f"keeper: {log.secrets.scrub(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


@app.command()
def run(
    config: Config = DEFAULT_CONFIG,
    once: Annotated[bool, typer.Option("--once", help="Handle one head and exit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and try, but never sign.")] = False,
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the daemon: watch, assess, plan, try, clear, send, settle and book at every head."""
    from keeper import commands

    log.configure(log_level)
    _wait(commands.run(config, _builds(), once=once, dry_run=dry_run))


@app.command()
def scan(
    config: Config = DEFAULT_CONFIG,
    liquidatable: Annotated[
        bool, typer.Option("--liquidatable", help="Only positions that can be liquidated.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="At most this many, least healthy first.")
    ] = 100,
    json: Json = False,
) -> None:
    """List positions with health, collateral, debt and liquidation price."""
    from keeper import commands, render

    document = _wait(commands.scan(config, liquidatable=liquidatable, limit=limit))
    _print(document, render.scan, json)


@app.command()
def explain(account: str, config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Say what every stage answers for one account now, and what was refused before."""
    from keeper import commands, render

    _print(_wait(commands.explain(config, account)), render.explain, json)


@app.command()
def doctor(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Check configuration, chain, contracts, keys and feeds, and say how to fix what is wrong."""
    from keeper import commands, render

    document = _wait(commands.doctor(config, _builds()))
    _print(document, render.doctor, json)
    if not document["ok"]:
        raise typer.Exit(1)


@app.command()
def deploy(
    safe: Annotated[str, typer.Option("--safe", help="The Safe that owns both contracts.")],
    treasury: Annotated[str, typer.Option("--treasury", help="Where all profit goes, for ever.")],
    guardian: Annotated[
        list[str], typer.Option("--guardian", help="An account that may pause; repeat for several.")
    ],
    unpause_delay: Annotated[
        int,
        typer.Option("--unpause-delay", min=1, help="Seconds between scheduling an unpause and its effect."),
    ] = 1800,
    config: Config = DEFAULT_CONFIG,
    out: Annotated[Path, typer.Option("--out", help="Where to write the Safe transactions.")] = Path(
        "safe-setup.json"
    ),
    json: Json = False,
) -> None:
    """Deploy PauseGuard and Liquidator, write [contracts], and write the Safe transactions that finish the set-up."""
    from keeper import commands, render

    document = _wait(
        commands.deploy(
            config,
            _builds(),
            safe=safe,
            treasury=treasury,
            guardians=guardian,
            unpause_delay_s=unpause_delay,
            out=out,
        )
    )
    _print(document, render.deploy, json)


@app.command()
def demo(
    json: Json = False,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Keep configuration, ledger and logs in this folder.")
    ] = None,
) -> None:
    """Build a local chain of real protocols and take the daemon through a price fall, a pause and an unpause."""
    from keeper.lab import demo as lab_demo

    document = _wait(lab_demo.run(keep, quiet=json))
    _print(document, lab_demo.render, json)
    if not document["ok"]:
        raise typer.Exit(1)


@ledger_app.command("list")
def ledger_list(
    config: Config = DEFAULT_CONFIG,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many, newest first.")] = 50,
    kind: Kind = None,
    account: Annotated[str | None, typer.Option("--account", help="Only entries about this account.")] = None,
    json: Json = False,
) -> None:
    """List entries of the ledger."""
    from keeper import render
    from keeper.commands import ledger

    _print(ledger.listed(config, limit=limit, kind=kind, account=account), render.ledger_list, json)


@ledger_app.command("show")
def ledger_show(
    seq: Annotated[int, typer.Argument(min=1, help="The entry's number.")],
    config: Config = DEFAULT_CONFIG,
    size: Annotated[
        int | None,
        typer.Option("--size", min=1, help="Prove it under the head of this many entries; else the newest."),
    ] = None,
    json: Json = False,
) -> None:
    """Show one entry, and the proof that a published root contains it."""
    from keeper import render
    from keeper.commands import ledger

    _print(ledger.shown(config, seq, size), render.ledger_show, json)


@ledger_app.command("verify")
def ledger_verify(
    file: Annotated[
        Path | None, typer.Argument(help="A backup or another record, instead of the configured one.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    head: Annotated[
        str | None,
        typer.Option("--head", help="A head noted elsewhere that it must fit.", metavar="SIZE:ROOT"),
    ] = None,
    json: Json = False,
) -> None:
    """Check that no entry was changed, removed, moved, put in or cut off; needs the file and no chain."""
    from keeper import render
    from keeper.commands import ledger

    document = ledger.verified(config, file, head)
    _print(document, render.ledger_verify, json)
    if not document["ok"]:
        raise typer.Exit(1)


@ledger_app.command("export")
def ledger_export(
    config: Config = DEFAULT_CONFIG,
    form: Annotated[str, typer.Option("--format", help="csv or json.")] = "json",
    since: Annotated[
        str | None, typer.Option("--since", help="From this time on: ISO, or seconds since the epoch.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Before this time.")] = None,
    kind: Kind = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write to this new file, not to stdout.")] = None,
) -> None:
    """Write entries, oldest first, as CSV or JSON."""
    from keeper.commands import ledger

    ledger.exported(config, form=form, since=since, until=until, kind=kind, out=out)


@ledger_app.command("backup")
def ledger_backup(
    path: Annotated[Path, typer.Argument(help="The backup's new file.")],
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Copy the record to a new file, also while the daemon runs, and verify the copy."""
    from keeper import render
    from keeper.commands import ledger

    _print(ledger.backed_up(config, path), render.ledger_backup, json)


@ledger_app.command("restore")
def ledger_restore(
    path: Annotated[Path, typer.Argument(help="The backup.")],
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Make a verified backup the record; the daemon then asks the chain for what it lacks before it sends anything."""
    from keeper import render
    from keeper.commands import ledger

    _print(ledger.restored(config, path), render.ledger_restore, json)


@ledger_app.command("correct")
def ledger_correct(
    seq: Annotated[int, typer.Argument(min=1, help="The number of the entry that is wrong.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever reads it later.")],
    amounts: Annotated[
        list[str] | None,
        typer.Option("--set", help="An amount that is right; repeat for several.", metavar="NAME=AMOUNT"),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Append a correction of an entry's amounts; nothing that was booked changes. The daemon must not run."""
    from keeper import render
    from keeper.commands import ledger

    _print(ledger.corrected(config, seq, reason, amounts or []), render.ledger_correct, json)


@lab_app.command("install")
def lab_install() -> None:
    """Install the pinned chain tools and protocol bytecode that the lab needs."""
    from keeper.lab import install

    install.install(lambda line: print(line, file=sys.stderr))
    print(f"The lab is ready in {install.lab_home()}.")


@lab_app.command("chaos")
def lab_chaos(
    seed: Annotated[int, typer.Option("--seed", min=0, help="What all chance follows from.")] = 0,
    kills: Annotated[int, typer.Option("--kills", min=0, help="Deaths of the daemon's process.")] = 10,
    scripts: Annotated[
        int, typer.Option("--scripts", min=0, help="Scripts of faults, of this seed and those after it.")
    ] = 50,
    json: Json = False,
) -> None:
    """Let nodes, pool, disk and clock go wrong, kill the daemon, and prove that no promise was broken."""
    from keeper.lab.chaos import session

    document = _wait(session.run(seed, kills, scripts, quiet=json))
    _print(document, session.render, json)
    if not document["ok"]:
        raise typer.Exit(1)


@bench_app.command("reaction")
def bench_reaction(
    json: Json = False,
    write: Annotated[bool, typer.Option("--write", help="Write docs/benchmarks.md.")] = False,
    heads: Annotated[
        int, typer.Option("--heads", min=3, help="Price falls measured per variant and size.")
    ] = 15,
) -> None:
    """Measure head to accepted transaction against a naive loop and the floor, interleaved in one run."""
    from keeper.lab import bench

    _print(_wait(bench.reaction(heads=heads, write=write)), bench.render, json)


@bench_app.command("pause")
def bench_pause(
    json: Json = False,
    write: Annotated[bool, typer.Option("--write", help="Write its part of docs/benchmarks.md.")] = False,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Pauses measured.")] = 200,
) -> None:
    """Measure how soon a pause closes the gate and takes back what is in flight; fail where that is too late."""
    from keeper.lab import bench

    document = _wait(bench.pause(trials=trials, write=write))
    _print(document, bench.render_pause, json)
    if not document["ok"]:
        raise typer.Exit(1)


@bench_app.command("plan")
def bench_plan(
    json: Json = False,
    write: Annotated[bool, typer.Option("--write", help="Write its part of docs/benchmarks.md.")] = False,
    cases: Annotated[int, typer.Option("--cases", min=1, help="Accounts of each depth and protocol.")] = 5,
) -> None:
    """Measure how fast plans are made, and what they net of the best that brute force finds; fail below 99.9 %."""
    from keeper.lab import bench

    document = _wait(bench.plan(cases=cases, write=write))
    _print(document, bench.render_plan, json)
    if not document["ok"]:
        raise typer.Exit(1)
