"""`python -m keeper.lab.judge`: the verdict on a finished chain. Exit codes: 0 ok, 1 not, 2 configuration, 3 chain."""

from __future__ import annotations

import argparse
import asyncio
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path

import msgspec

from keeper.errors import KeeperError
from keeper.lab.judge import TOLERANCE_USD, judge


def main() -> int:
    """Parse, judge, print."""
    parser = argparse.ArgumentParser(
        prog="scripts/judge",
        description="Say what a keeper left on a finished chain and what it booked wrongly.",
    )
    parser.add_argument(
        "--config", type=Path, default=Path("keeper.toml"), help="the keeper's configuration file"
    )
    parser.add_argument(
        "--rpc", metavar="URL", help="the chain's node; by default those of the configuration"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--market", action="append", default=[], metavar="NAME", help="judge only accounts of this one"
    )
    parser.add_argument(
        "--tolerance-usd",
        type=_dollars,
        default=TOLERANCE_USD,
        metavar="USD",
        help="net profit over the minimum that counts as none, because gas is an estimate (default %(default)s)",
    )
    options = parser.parse_args()
    try:
        verdict = asyncio.run(judge(options.config, options.rpc, options.tolerance_usd, options.market))
    except KeeperError as error:
        print(f"judge: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(verdict.document()), indent=2).decode())
    else:
        print(verdict)
    return 0 if verdict.ok else 1


def _dollars(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text} is not an amount of dollars") from None
    if not amount.is_finite() or amount < 0:
        raise argparse.ArgumentTypeError(f"{text} is not an amount of dollars")
    return amount


if __name__ == "__main__":
    sys.exit(main())
