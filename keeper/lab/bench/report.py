"""The bench's document for people: a table on the terminal and `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from keeper import share_dir
from keeper.errors import ConfigError

_LABELS: Final = {
    "floor": "floor",
    "keeper": "keeper, seen from outside",
    "keeper_inside": "keeper, its own measure",
    "multicall": "web3.py + Multicall3",
    "naive": "web3.py, account by account",
}
_PAUSE_LABELS: Final = {
    "gate_pending_ms": "handed to the node, to gate closed",
    "gate_head_ms": "head of its block, to gate closed",
    "cancel_ms": "handed to the node, to the last cancellation accepted",
}
_PAUSE_HEADING: Final = "## How soon a pause stops it"
_PLAN_HEADING: Final = "## How good plans are"
_PARTS: Final = (_PAUSE_HEADING, _PLAN_HEADING)  # of the page, after its first part
_PLACES: Final = ("p50", "p90", "p99")


def render(document: Mapping[str, Any]) -> None:
    """Figures and ratios as a table."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title="Head to accepted transaction, ms", box=None, pad_edge=False, title_justify="left")
    for column in ("accounts", "", *_PLACES, "sampled"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for cells in _rows(document):
        table.add_row(*cells)
    console.print(table)
    ratios = document["ratios"]
    console.print(
        f"{ratios['floor']:,.1f} floors; {ratios['naive']:,.0f} times faster than the naive loop, "
        f"{ratios['multicall']:,.0f} times faster than Multicall3; what was sampled is scaled to all accounts"
    )


def render_pause(document: Mapping[str, Any]) -> None:
    """Figures as a table, and what does not hold."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title="Pause, ms", box=None, pad_edge=False, title_justify="left")
    for column in ("", *_PLACES):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for cells in _pause_rows(document):
        table.add_row(*cells)
    console.print(table)
    executed = document["figures"]["executed_after_pause"]
    console.print(f"{document['trials']} pauses, {document['in_flight']} transactions in flight at each")
    console.print(f"liquidations executed in the pause's block or after it: {executed}")
    for failure in document["failures"]:
        console.print(f"FAILED: {failure}")


def render_plan(document: Mapping[str, Any]) -> None:
    """Figures, and what does not hold."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title="Plans", box=None, pad_edge=False, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for cells in _plan_rows(document):
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"{document['planned']} plans of {document['cases']} accounts, each compared with brute force"
    )
    console.print("gains are over what the largest amount nets by the best single route")
    for failure in document["failures"]:
        console.print(f"FAILED: {failure}")


def write_pause(document: Mapping[str, Any]) -> None:
    """Write its part of `docs/benchmarks.md`, and leave the rest. Raises ConfigError without a source checkout."""
    machine = document["machine"]
    lines = ["| | p50 ms | p90 ms | p99 ms |", "|---|--:|--:|--:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in _pause_rows(document)]
    text = _PAUSE_PART.format(
        heading=_PAUSE_HEADING,
        table="\n".join(lines),
        trials=document["trials"],
        in_flight=document["in_flight"],
        accounts=f"{document['accounts']:,}",
        executed=document["figures"]["executed_after_pause"],
        load=", ".join(f"{each:.1f}" for each in machine["load"]),
        cpu=machine["cpu"],
        cores=machine["cores"],
    )
    _put(_PAUSE_HEADING, text)


def write_plan(document: Mapping[str, Any]) -> None:
    """Write its part of `docs/benchmarks.md`, and leave the rest. Raises ConfigError without a source checkout."""
    machine = document["machine"]
    lines = ["| | |", "|---|--:|", *(f"| {' | '.join(cells)} |" for cells in _plan_rows(document))]
    text = _PLAN_PART.format(
        heading=_PLAN_HEADING,
        table="\n".join(lines),
        cases=document["cases"],
        planned=document["planned"],
        only_planned=document["only_planned"],
        amounts=document["amounts"],
        load=", ".join(f"{each:.1f}" for each in machine["load"]),
        cpu=machine["cpu"],
        cores=machine["cores"],
    )
    _put(_PLAN_HEADING, text)


def write_page(document: Mapping[str, Any]) -> None:
    """Write the first part of `docs/benchmarks.md`. Raises ConfigError without a source checkout."""
    machine, versions, ratios = document["machine"], document["versions"], document["ratios"]
    lines = [
        "| accounts | variant | p50 ms | p90 ms | p99 ms | sampled and scaled from |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in _rows(document)]
    text = _PAGE.format(
        table="\n".join(lines),
        heads=document["heads"],
        largest=f"{max(map(int, document['figures'])):,}",
        floor=f"{ratios['floor']:,.1f}",
        naive=f"{ratios['naive']:,.0f}",
        multicall=f"{ratios['multicall']:,.0f}",
        cpu=machine["cpu"],
        cores=machine["cores"],
        python=machine["python"],
        anvil=machine["anvil"],
        load=", ".join(f"{each:.1f}" for each in machine["load"]),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )
    _put("", text)


def _put(heading: str, text: str) -> None:
    """Replace one part of the page, the first where there is no heading; parts keep their order."""
    page = _page()
    parts = dict.fromkeys(("", *_PARTS), "")
    rest = page.read_text() if page.exists() else ""
    for name in reversed(_PARTS):
        rest, found, after = rest.partition(name)
        parts[name] = found + after
    parts |= {"": rest, heading: text}
    page.write_text("\n\n".join(part.strip() for part in parts.values() if part.strip()) + "\n")


def _page() -> Path:
    page = share_dir() / "docs" / "benchmarks.md"
    if not page.parent.is_dir():
        raise ConfigError("--write writes docs/benchmarks.md of a source checkout; run it in one.")
    return page


def _pause_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, label in _PAUSE_LABELS.items():
        figure = document["figures"][name]
        yield (label, *(_milliseconds(figure[place]) for place in _PLACES))


def _plan_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    figures, ratios = document["figures"], document["ratios"]
    yield "plans a second", f"{figures['plans_per_second']:,.1f}"
    for place in _PLACES:
        yield f"one plan, {place} ms", _milliseconds(figures["plan_ms"][place])
    yield "times as long: brute force", f"{ratios['brute_force']:,.0f}"
    yield "worst plan, of the best found", _percent(figures["vs_brute_force_worst"])
    for depth in ("deep", "medium", "thin"):
        yield f"median gain in {depth} pools", _percent(figures[f"gain_{depth}_median"])


def _percent(fraction: float | None) -> str:
    return "nothing to compare" if fraction is None else f"{fraction:.2%}"


def _rows(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for accounts, figures in document["figures"].items():
        for name, label in _LABELS.items():
            figure = figures[name]
            sampled = f"{figure['sampled']:,}" if "sampled" in figure else ""
            yield (f"{int(accounts):,}", label, *(_milliseconds(figure[place]) for place in _PLACES), sampled)


def _milliseconds(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


_PAGE: Final = """\
# Benchmarks

How long from a head to an accepted transaction? This page is written by

```console
$ keeper bench reaction --write
```

on real Aave V3.6 with {largest} borrowers, everything in one run. Absolute times depend on the machine and on what
else it does; the ratios are what to compare.

| at {largest} accounts | |
|---|--:|
| keeper over floor (less is better) | {floor} |
| naive web3.py loop over keeper (more is better) | {naive} |
| web3.py with Multicall3 over keeper (more is better) | {multicall} |

{table}

## What is measured

Every sample is one block in which a Chainlink feed steps down by a tenth of a percent and makes exactly one more of
the borrowers liquidatable. Medians are over {heads} such blocks for each variant and size. The variants take turns in
random order within each round, so that what the machine does meanwhile falls on all of them; two rounds before the
first counted one warm up connections and caches.

- **Floor**: the least there is to do for a program that knew everything beforehand. A thread that blocks on the
  node's IPC socket writes the keeper's last liquidation, signed beforehand by another key, as soon as the bytes of
  `newHeads` arrive, without parsing them. It ends when the node's answer arrives.
- **Keeper, seen from outside**: `keeper run` as its own process, connected by IPC to the same node, doing its whole
  line: logs since the last head, pause state, prices and indices of the market, every account of the book,
  exact health of those near the edge, flash loans, quotes of every route, the trial of the exact calldata, the
  guard's clearance, the intent and the signed bytes recorded and flushed to disk, broadcast. From the head's arrival
  at the bench, another subscriber of the node, until the node announces the keeper's transaction to it as pending.
  Each transaction is then mined, and must have been sent by the operator and have liquidated the borrower.
- **Keeper, its own measure**: from the head's arrival at the keeper to the moment its first transaction is handed to
  the connection; the log's `reaction_us`. Where it exceeds what was seen from outside (the bench's own thread may be
  woken late on a busy machine), the larger of the two is counted as seen from outside.
- **web3.py, account by account**: `getUserAccountData` of one account after the other over HTTP with web3.py's
  defaults, then `liquidationCall` built, signed and sent. It is measured on a random sample that contains the
  liquidatable borrower, and the time per account is scaled to all of them. A loop that sends as soon as it finds
  somebody needs half of that on average. It is told of the head for nothing.
- **web3.py + Multicall3**: the same with 200 accounts to one `aggregate3`.

All clocks are the kernel's monotonic clock, which the processes share. The keeper is stopped (`SIGSTOP`) while
another variant is measured, and has caught up with the chain at a quiet head before its own turn.

## What these figures do not say

- The node is anvil on the same machine, answering over a Unix socket. A remote node adds its round trip to each of
  the keeper's requests: about five in a row.
- No other traffic: nobody competes for the account, and the pools do not move meanwhile.
- One borrower falls at a time. How the keeper does with thousands at once is another bench's affair.
- Flushing the record to disk before broadcasting is part of the keeper's time, and as fast as the disk.
- Figures called sampled are scaled, not measured to their end.

## Machine

{cpu}, {cores} cores; Python {python}, anvil {anvil}; load when it began: {load} (the cores were shared).
Versions: {versions}.
"""

_PAUSE_PART: Final = """\
{heading}

Written by `keeper bench pause --write`: {trials} pauses of a guardian, each while {in_flight} of the keeper's
transactions wait in the pool, with {accounts} borrowers in the book.

{table}

Liquidations executed in the block of a pause or after it, counted on the chain: {executed}.

The clock starts when the guardian's transaction is handed to the node. The gate is closed after the node has announced
it and answered an `eth_call` of it; the moment is the keeper's own, by the monotonic clock that all processes share.
A cancellation is accepted when the node announces it as pending to another subscriber; the last of the {in_flight}
counts, and each must be a transfer of nothing from the operator to itself. The head is that of the pause's block, from
its arrival at another subscriber to the keeper having read it. {cpu}, {cores} cores; load when it began: {load}.
"""

_PLAN_PART: Final = """\
{heading}

Written by `keeper bench plan --write`: {cases} random accounts that fell, on Aave V3 and Morpho Blue by turns, in pools
of Uniswap V3 and V2 of three depths; {planned} of them are worth a plan.

{table}

Each plan is compared with {amounts} amounts of every pair of debt and collateral and those at which a rule changes, by
every route and every lender, each swap asked of QuoterV2 or the router of Uniswap V2 at the same block, and net of gas.
Swaps are not shared out there, so a plan may net more than 100 % of the best that was found. Gains are over what the
largest amount nets by the best single route. That has to pass the Liquidator's end check too: in {only_planned} of the
plans no largest amount does, and they count for no median. In deep pools there is nothing to gain. A plan's time is
without reading the pools. {cpu}, {cores} cores; load when it began: {load}.
"""
