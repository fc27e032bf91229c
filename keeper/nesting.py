"""How deep calls may nest. A library behind eth-account and web3 raises it to 100,000 when it is loaded: an answer of a
node or a signer nested as deep would then overrun the C stack, and end the process without a word.
"""

from __future__ import annotations

import sys
from typing import Final

_MOST: Final = 1_000


def restore() -> None:
    """Call after loading one of them."""
    sys.setrecursionlimit(_MOST)
