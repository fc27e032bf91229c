"""Who acts on a local chain: one key per role, derived from the role's name.

The keys are public by design, so they are worth nothing anywhere else; `keeper demo` and the tests sign with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from keeper.abi import keccak
from keeper.types import Address


@dataclass(frozen=True, slots=True)
class Actor:
    """A role and its address."""

    name: str
    address: Address

    @property
    def key(self) -> bytes:
        """Its private key, 32 bytes."""
        return _key(self.name)


@dataclass(frozen=True, slots=True)
class Cast:
    """Everyone a world needs.

    `deployer` administers every protocol and mints every token; `reporter` is the oracle behind each feed; `lender`
    supplies the money markets; `operator` is the keeper's hot key; `liquidator` liquidates by hand; two of the three
    `owners` act for the Safe; each `guardian` may pause.
    """

    deployer: Actor
    reporter: Actor
    lender: Actor
    operator: Actor
    liquidator: Actor
    treasury: Actor
    owners: tuple[Actor, ...]
    guardians: tuple[Actor, ...]

    def everyone(self) -> tuple[Actor, ...]:
        """All of them."""
        single = (self.deployer, self.reporter, self.lender, self.operator, self.liquidator, self.treasury)
        return (*single, *self.owners, *self.guardians)


def cast() -> Cast:
    """The actors of every local world: the same on each."""
    return Cast(
        deployer=actor("deployer"),
        reporter=actor("reporter"),
        lender=actor("lender"),
        operator=actor("operator"),
        liquidator=actor("liquidator"),
        treasury=actor("treasury"),
        owners=tuple(actor(f"owner {number}") for number in (1, 2, 3)),
        guardians=tuple(actor(f"guardian {number}") for number in (1, 2)),
    )


def actor(name: str) -> Actor:
    """The actor of that name; any name makes one."""
    # Imported here: it takes half a second, and a world read from its manifest already knows its addresses.
    from eth_account import Account  # noqa: PLC0415

    return Actor(name, Address(bytes.fromhex(Account.from_key(_key(name)).address[2:])))


def account(number: int) -> Address:
    """An address nobody has the key of, for borrowers that are only ever impersonated."""
    return Address(keccak(b"liquidation keeper lab: account %d" % number)[12:])


def _key(name: str) -> bytes:
    return bytes(keccak(b"liquidation keeper lab: " + name.encode()))
