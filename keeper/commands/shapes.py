"""Pieces of documents that several commands share."""

from __future__ import annotations

from typing import Any, Final

from keeper import abi
from keeper.errors import ConfigError
from keeper.ledger import Booked
from keeper.types import Address, hex_of

SCHEMA: Final = 1


def entry_of(entry: Booked) -> dict[str, Any]:
    """An entry of the ledger."""
    return {
        "seq": entry.seq,
        "at_s": entry.at_s,
        "kind": entry.kind,
        "plan_id": entry.plan_id or None,
        "protocol": entry.protocol or None,
        "account": entry.account or None,
        "body": entry.body,
        "hash": hex_of(entry.hash),
    }


def account_of(text: str) -> Address:
    """An account as people write it. Raises `ConfigError`."""
    try:
        return abi.address(text)
    except ValueError:
        raise ConfigError(
            f"{text} is not an account; write 0x and 40 hex digits, in lower case or with their checksum."
        ) from None
