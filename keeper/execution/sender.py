"""From a cleared plan to a settlement: record, sign, record, broadcast, account for.

The order is the promise: the intent with its nonce is stored before the key is asked, the signed bytes before they
are broadcast, and the receipt is the only thing that says "liquidated". What the treasury gained is read from the
Liquidator's own event, never estimated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from keeper import abi
from keeper.chain.client import Chain, Receipt
from keeper.errors import ExecutionError, RpcError
from keeper.execution.fees import cancel_fees
from keeper.guard import Clearance, Fees
from keeper.keys import OperatorKey
from keeper.ledger import Ledger
from keeper.store import OpenTransaction, Store
from keeper.trial import explain_revert
from keeper.types import Address, Hash, Head, Plan, PositionKey, Settlement, Submission, Trial, Wei

_LIQUIDATED: Final = abi.load("Liquidator").event("Liquidated")
