"""Documents as people read them: tables on a terminal, plain lines where output is piped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WAD: Final = Decimal(10) ** 18
_WIDE: Final = 160  # a table in full: whoever reads it narrower wraps it, nobody gets half an address
_console: Final = Console(highlight=False, soft_wrap=True, width=max(Console().width, _WIDE))


def scan(document: Mapping[str, Any]) -> None:
    """Positions, least healthy first."""
    table = _table(
        *("protocol", "account", "health factor", "collateral $", "debt $", "bad debt $"),
        *("liquidation price $", ""),
    )
    for row in document["positions"]:
        health = Decimal(row["health_factor_wad"]) / _WAD
        table.add_row(
            row["protocol"],
            row["account"],
            f"{health:.6f}" if health < 10**6 else "> 1e6",
            _usd(row["collateral_usd"]),
            _usd(row["debt_usd"]),
            _usd(row["bad_debt_usd"]) if row["bad_debt"] else "-",
            _usd(row["liquidation_price"]) if row["liquidation_price"] else "-",
            Text("liquidatable", style="red") if row["liquidatable"] else "",
        )
    _console.print(table)
    for row in document["refused"]:
        _console.print(f"{row['protocol']} {row.get('account', '')} refused: {row['stage']} {row['reason']}")
    _console.print(f"{len(document['positions'])} positions at block {document['block']['number']}")


def explain(document: Mapping[str, Any]) -> None:
    """Stage by stage, then what happened before."""
    _console.print(f"{document['account']} at block {document['block']['number']}")
    for protocol in document["protocols"]:
        _console.print(f"\n[bold]{protocol['protocol']}[/bold]")
        if position := protocol.get("position"):
            health = Decimal(position["health_factor_wad"] or 0) / _WAD
            _console.print(
                f"  health factor {health:.6f}, collateral ${_usd(position['collateral_usd'])}, "
                f"debt ${_usd(position['debt_usd'])}"
            )
        for each in protocol["auctioned_feeds"]:
            _console.print(f"  the price of {each['symbol']} is auctioned: feed {each['feed']}")
        for stage in protocol["stages"]:
            _console.print(f"  {stage['stage']:<9} {stage['answer']:<22} {_numbers(stage['numbers'])}")
    for trip in document["breakers"]:
        _trip(trip)
    if document["history"]:
        _console.print("\n[bold]history[/bold]")
        for entry in document["history"]:
            _console.print(f"  {_time(entry['at_s'])} {entry['kind']:<9} {_numbers(entry['body'])}")


def doctor(document: Mapping[str, Any]) -> None:
    """One line a check; what to do under each that failed."""
    for check in document["checks"]:
        mark = "ok  " if check["ok"] else "FAIL" if check["required"] else "warn"
        _console.print(f"{mark} {check['name']}: {check['detail']}")
        if not check["ok"] and check["fix"]:
            _console.print(f"       {check['fix']}")
    _console.print("ready to run" if document["ok"] else "not ready to run")


def deploy(document: Mapping[str, Any]) -> None:
    """Addresses, then what the Safe still has to do."""
    for name in ("pause_guard", "liquidator"):
        _console.print(f"{name} {document[name]}")
    _console.print(f"wrote [contracts] to {document['config']}")
    for call in document["safe_transactions"]:
        _console.print(f"  Safe: {call['description']}")
    if document["safe_transactions"]:
        files = f"{document['out']} and {document['safetx']}"
        _console.print(f"{len(document['safe_transactions'])} calls for the Safe are in {files}")
    else:
        _console.print("the Safe has nothing left to do")


def pause_status(document: Mapping[str, Any]) -> None:
    """One line a scope."""
    for scope in document["scopes"]:
        state = "PAUSED" if scope["paused"] else "running"
        since = f" since {_time(scope['paused_at_s'])} ({scope['reason']})" if scope["paused"] else ""
        until = f", unpause possible {_time(scope['unpause_at_s'])}" if scope["unpause_at_s"] else ""
        _console.print(f"{scope['scope']:<20} {state}{since}{until}, epoch {scope['epoch']}")
    if document["halt_file_present"]:
        _console.print("the local halt file is present: nothing is signed")
    for trip in document["breakers"]:
        _trip(trip)


def breakers_list(document: Mapping[str, Any]) -> None:
    """One line a tripped breaker, and how it lets go."""
    for trip in document["breakers"]:
        _trip(trip)
    if not document["breakers"]:
        _console.print("nothing is tripped")


def breakers_cleared(document: Mapping[str, Any]) -> None:
    """What no longer stops the keeper."""
    for trip in document["cleared"]:
        _console.print(f"cleared {_tripped(trip)}")


def page(document: Mapping[str, Any]) -> None:
    """Where the signers' page is, and which."""
    _console.print(f"Open  {document['url']}", markup=False)
    _console.print(f"Page  sha256 {document['sha256']} (page.html, page.css, page.js, one after the other)")
    _console.print("The URL is a secret: whoever has it and this machine can use the page. Ctrl-C ends it.")


def pause_show(document: Mapping[str, Any]) -> None:
    """What it does first, then what is wrong with it, then what to compare on the wallet."""
    print_ = _console.print
    print_(
        f"Safe {document['safe']} on chain {document['chain_id']}, nonce {document['nonce']}", markup=False
    )
    if document["safe_nonce"] not in (None, document["nonce"]):
        print_(f"the Safe is at nonce {document['safe_nonce']}: this cannot be executed now", markup=False)
    if document["note"]:
        print_(f"its note (nobody vouches for it): {document['note']}", markup=False)
    if document["batch_by"]:
        flagged = any(flag["name"] == "delegatecall" for flag in document["red_flags"])
        known = "" if flagged else " (MultiSendCallOnly, its code was checked)"
        print_(f"one batch of {len(document['calls'])} calls by {document['batch_by']}{known}", markup=False)
    for number, call in enumerate(document["calls"], 1):
        print_(f"\n{number}. {call['words']}", style="bold", markup=False)
        print_(f"   {call['contract'] or 'UNKNOWN'} {call['to']}", markup=False)
        print_(f"   {call['function'] or call['data']}", markup=False)
        for name, value in call["arguments"].items():
            print_(f"     {name}: {value}", markup=False)
    print_("")
    for flag in document["red_flags"]:
        print_(f"RED FLAG  {flag['what']}", style="bold red", markup=False)
    for what in document["unchecked"]:
        print_(f"NOT CHECKED  {what}", style="yellow", markup=False)
    for rival in document["rivals"]:
        print_(
            f"RIVAL  {rival['file']} has the same nonce: only one can be executed. {rival['note']}",
            markup=False,
        )
    for what in document["unreadable"]:
        print_(f"not read: {what}", markup=False)
    for name, title in (
        ("domain", "domain hash"),
        ("message", "message hash"),
        ("safe_tx", "Safe transaction hash"),
    ):
        print_(f"{title}\n  Ledger  {document['hashes'][name]['ledger']}", markup=False)
        print_(f"  Trezor  {document['hashes'][name]['trezor']}", markup=False)
    needed = "" if document["threshold"] is None else f" of {document['threshold']} needed"
    print_(f"signed by {len(document['signed'])}{needed}", markup=False)
    for one in document["signed"]:
        print_(f"  {one['owner']} ({one['kind']})", markup=False)
    for owner in document["missing"] or ():
        print_(f"  {owner} has not signed", markup=False)


def proposal(document: Mapping[str, Any]) -> None:
    """A proposal that was built, signed or merged."""
    _console.print(f"wrote {document['file']}: nonce {document['nonce']}. {document['note']}", markup=False)
    _console.print(f"hash {document['safe_tx_hash']}, {len(document['signed'])} signatures", markup=False)


def simulated(document: Mapping[str, Any]) -> None:
    """Whether it would work, and every cause if not."""
    have = document["signatures"]
    for call in document["calls"]:
        mark = {True: "ok  ", False: "FAIL", None: "?   "}[call["ok"]]
        _console.print(f"{mark} {call['words']} {call['reason']}".rstrip(), markup=False)
    for flag in document["red_flags"]:
        _console.print(f"RED FLAG  {flag['what']}", style="bold red", markup=False)
    for cause in document["causes"]:
        _console.print(f"FAIL {cause}", markup=False)
    lacking = "" if have["complete"] else " (as if the missing ones were there)"
    _console.print(f"signatures: {have['valid']} of {have['threshold']}{lacking}", markup=False)
    _console.print("it would be executed" if document["ok"] else "it would NOT be executed")


def proved(document: Mapping[str, Any]) -> None:
    """What was mined, and what the contracts' state says since."""
    _console.print(f"mined {document['tx']} in block {document['block']['number']}", markup=False)
    for what in document["proved"]:
        _console.print(f"proved: {what}", markup=False)


def guardian_pause(document: Mapping[str, Any]) -> None:
    """The message and how anybody relays it."""
    _console.print(f"wrote {document['file']}: {document['what']}", markup=False)
    _console.print(f"relay it: send {document['relay']['data']}", markup=False)
    _console.print(f"to {document['relay']['to']}", markup=False)


def handed_over(document: Mapping[str, Any]) -> None:
    """What the daemon has stopped."""
    _console.print(f"{document['what']}: the daemon has its word and tells the chain", markup=False)


def drill(document: Mapping[str, Any]) -> None:
    """One line a step, with how long it took."""
    for step in document["steps"]:
        mark = "ok  " if step["ok"] else "FAIL"
        _console.print(
            f"{mark} {step['ms']:>8.1f} ms  {step['what']} {step['detail']}".rstrip(), markup=False
        )
    _console.print(f"rehearsed {document['how']}; nothing was sent to the real chain")


def ledger_list(document: Mapping[str, Any]) -> None:
    """One line an entry, newest first."""
    for entry in document["entries"]:
        who = " ".join(part for part in (entry["protocol"], entry["account"]) if part)
        _console.print(
            f"{entry['seq']:>6} {_time(entry['at_s'])} {entry['kind']:<9} {who} {_numbers(entry['body'])}"
        )


def ledger_show(document: Mapping[str, Any]) -> None:
    """The entry field by field, then its proof."""
    entry, proof = document["entry"], document["proof"]
    _console.print(f"entry {entry['seq']}  {_time(entry['at_s'])}  {entry['kind']}")
    for name in ("plan_id", "protocol", "account", "hash", "prev_hash"):
        if entry[name]:
            _console.print(f"  {name:<24} {entry[name]}")
    for name, value in entry["body"].items():
        _console.print(f"  {name:<24} {value if isinstance(value, str) else json.dumps(value)}")
    others = ", ".join(f"{other['seq']} {other['kind']}" for other in document["plan_entries"])
    if others:
        _console.print(f"entries of its plan: {others}")
    _console.print(f"proved to be among {_head(proof)}, by")
    for sibling in proof["path"]:
        _console.print(f"  {sibling}")


def ledger_verify(document: Mapping[str, Any]) -> None:
    """One sentence: whole under which root, or what is wrong where."""
    if document["ok"]:
        head = f" The root is {document['root']}." if document["root"] else ""
        _console.print(f"{document['file']} is whole: {document['entries']} entries.{head}")
    else:
        _console.print(document["fault"]["what"])


def ledger_backup(document: Mapping[str, Any]) -> None:
    """Where, and the head to keep elsewhere."""
    _console.print(f"{document['backup']} holds {_head(document)}")


def ledger_restore(document: Mapping[str, Any]) -> None:
    """What is there now and what happens next."""
    _console.print(f"{document['record']} is now {document['backup']}: {_head(document)}")
    _console.print("at its next start the keeper asks the chain for what this backup does not know")


def ledger_correct(document: Mapping[str, Any]) -> None:
    """The correction as it was booked."""
    entry = document["entry"]
    _console.print(f"entry {entry['seq']} {_numbers(entry['body'])}")


def _trip(trip: Mapping[str, Any]) -> None:
    _console.print(f"TRIPPED {_tripped(trip)} since {_time(trip['since_s'])}: {_numbers(trip['numbers'])}")
    _console.print(f"        clears {trip['clears']}")
    if "now" in trip["numbers"]:
        now, whose = trip["numbers"]["now"], trip["protocol"] or "global"
        _console.print(
            f"        keeper breakers acknowledge {whose} {now['address']} {now['runs']} --reason …"
        )


def _tripped(trip: Mapping[str, Any]) -> str:
    return " ".join(part for part in (trip["breaker"], trip["protocol"], trip["subject"]) if part)


def _head(head: Mapping[str, Any]) -> str:
    return f"{head['size']} entries, head {head['size']}:{head['root']}" if head["root"] else "no entries"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column.endswith("$") else "left")
    return table


def _numbers(numbers: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in numbers.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{len(value)}]"
    text = _numbers(value) if isinstance(value, Mapping) else str(value)
    return f"{text[:10]}…" if text.startswith("0x") and len(text) > 42 else text


def _usd(text: str) -> str:
    return f"{Decimal(text):,.2f}"


def _time(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
