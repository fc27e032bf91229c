"""What the operator configured, read from the TOML file alone.

The judge reads it by itself: of what the keeper understands by a key nothing is taken over. Overrides by environment
variables are not read, because they are gone when a finished run is judged; write what was run into the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from keeper import abi
from keeper.errors import ConfigError
from keeper.types import Address

_E8: Final = 8
_GWEI: Final = 9
_MAX_PRICE_AGE_S: Final = 90_000
_NAMED_BY: Final = 4  # bytes of a market's address


@dataclass(frozen=True, slots=True)
class Listed:
    """One configured market: its name, which is its pause scope, and the address it is known by.

    That is an Aave market's addresses provider, a Perp Curie exchange's clearing house, a Synthetix market's proxy, a
    reference exchange itself, and Morpho Blue itself, of which `parts` are the listed markets: all where there are
    none.
    `max_price_age_s` is how old a price may be that no feed of the Liquidator tells.
    """

    name: str
    address: Address
    max_price_age_s: int = 0
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Exchange:
    """One configured Uniswap V3 deployment."""

    factory: Address
    quoter: Address
    router: Address
    fee_tiers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """One configured Uniswap V2 deployment."""

    factory: Address
    router: Address


@dataclass(frozen=True, slots=True)
class Terms:
    """What a liquidation had to earn and was allowed to cost, and where everything is; USD with 8 decimals."""

    chain_id: int
    rpc_urls: tuple[str, ...]
    wrapped_native: Address
    data_fee: str
    liquidator: Address
    pause_guard: Address
    treasury: Address
    profit_token: Address
    min_profit_usd_e8: int
    max_slippage_bps: int
    native_usd_feed: Address
    max_fee_wei: int
    max_repay_usd_e8: int
    deny_accounts: frozenset[Address]
    markets: tuple[Listed, ...]
    curies: tuple[Listed, ...]
    synthetix: tuple[Listed, ...]
    references: tuple[Listed, ...]
    morphos: tuple[Listed, ...]
    exchanges: tuple[Exchange | Pairs, ...]
    flash_morphos: tuple[Address, ...]
    flash_pools: tuple[Address, ...]
    record: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all markets."""
        every = (*self.markets, *self.curies, *self.synthetix, *self.references, *self.morphos)
        return tuple(listed.name for listed in every)


def read_terms(path: Path) -> Terms:
    """The terms in a keeper's configuration file. Raises `ConfigError` naming the key that is missing or wrong."""
    try:
        document = tomllib.loads(path.read_text(), parse_float=Decimal)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error
    top = _Table(path, "", document)
    chain, contracts, profit = top.table("chain"), top.table("contracts"), top.table("profit")
    flash = top.table("flash", optional=True)
    limits, store = top.table("limits", optional=True), top.table("store", optional=True)
    morphos = tuple(
        Listed(
            table.text("name"),
            table.address("morpho"),
            parts=frozenset(str(item).lower() for item in table.items("markets", ())),
        )
        for table in top.tables("protocols", "morpho-blue")
    )
    lending = [listed.address for listed in morphos]
    lending += [flash.address("morpho")] if "morpho" in flash.values else []
    return Terms(
        chain_id=chain.integer("id"),
        rpc_urls=tuple(_beside(path, str(url)) for url in chain.items("rpc_urls")),
        wrapped_native=chain.address("wrapped_native"),
        data_fee=chain.text("data_fee", "none"),
        liquidator=contracts.address("liquidator"),
        pause_guard=contracts.address("pause_guard"),
        treasury=contracts.address("treasury"),
        profit_token=profit.address("token"),
        min_profit_usd_e8=profit.scaled("min_profit_usd", _E8, 5),
        max_slippage_bps=profit.integer("max_slippage_bps", 100),
        native_usd_feed=profit.address("native_usd_feed"),
        max_fee_wei=limits.scaled("max_fee_gwei", _GWEI, 200),
        max_repay_usd_e8=limits.scaled("max_repay_usd", _E8, 10**6),
        deny_accounts=frozenset(
            limits.as_address("deny_accounts", item) for item in limits.items("deny_accounts", ())
        ),
        markets=tuple(
            Listed(table.text("name"), table.address("pool_addresses_provider"))
            for table in top.tables("protocols", "aave-v3")
        ),
        curies=tuple(
            Listed(
                table.text("name"),
                table.address("clearing_house"),
                table.integer("max_price_age_s", _MAX_PRICE_AGE_S),
            )
            for table in top.tables("protocols", "perp-curie")
        ),
        synthetix=tuple(
            listed for table in top.tables("protocols", "synthetix-v2-perps") for listed in _listed(table)
        ),
        references=tuple(
            Listed(table.text("name"), table.address("exchange"))
            for table in top.tables("protocols", "reference-perp")
        ),
        morphos=morphos,
        exchanges=tuple(
            Exchange(
                table.address("factory"),
                table.address("quoter"),
                table.address("router"),
                tuple(table.items("fee_tiers", (100, 500, 3000, 10_000))),
            )
            for table in top.tables("venues", "uniswap-v3")
        )
        + tuple(
            Pairs(table.address("factory"), table.address("router"))
            for table in top.tables("venues", "uniswap-v2")
        ),
        flash_morphos=tuple(dict.fromkeys(lending)),
        flash_pools=tuple(
            flash.as_address("uniswap_v3_pools", item) for item in flash.items("uniswap_v3_pools", ())
        ),
        record=path.parent / store.file("url", "sqlite:///keeper.db"),
    )


def _listed(table: _Table) -> list[Listed]:
    """Every market of a table that may have several: those are named by how their addresses begin, too."""
    name = table.text("name")
    markets = [table.as_address("markets", item) for item in table.items("markets")]
    if len(markets) == 1:
        return [Listed(name, markets[0])]
    return [Listed(f"{name}-{market[:_NAMED_BY].hex()}", market) for market in markets]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the file that names its key when something is wrong with it."""

    path: Path
    name: str
    values: Mapping[str, Any]

    def table(self, key: str, *, optional: bool = False) -> _Table:
        value = self.values.get(key, {} if optional else None)
        if not isinstance(value, dict):
            raise self._wrong(key, f"add the section [{key}]")
        return _Table(self.path, key, value)

    def tables(self, key: str, kind: str) -> list[_Table]:
        found = self.values.get(key, [])
        if not isinstance(found, list):
            raise self._wrong(key, f"write [[{key}]] above each")
        return [
            _Table(self.path, f"{key}.{index}", table)
            for index, table in enumerate(found)
            if isinstance(table, dict) and table.get("kind") == kind
        ]

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "write text in quotes")
        return value

    def file(self, key: str, default: str) -> Path:
        url = self.text(key, default)
        if not url.startswith("sqlite:///"):
            raise self._wrong(key, "write sqlite:///keeper.db")
        return Path(url.removeprefix("sqlite:///")).expanduser()

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int):
            raise self._wrong(key, "write a whole number")
        return value

    def scaled(self, key: str, decimals: int, default: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int | Decimal):
            raise self._wrong(key, "write a number")
        return int(Decimal(value).scaleb(decimals))

    def items(self, key: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
        value = self.values.get(key, default)
        if not isinstance(value, list | tuple):
            raise self._wrong(key, "write a list")
        return value

    def address(self, key: str) -> Address:
        return self.as_address(key, self.values.get(key))

    def as_address(self, key: str, value: object) -> Address:
        try:
            return abi.address(str(value))
        except ValueError as error:
            raise self._wrong(key, "write 0x and 40 hexadecimal digits") from error

    def _wrong(self, key: str, remedy: str) -> ConfigError:
        where = f"{self.name}.{key}" if self.name else key
        return ConfigError(f"{self.path}: {where} is missing or wrong; {remedy}.")


def _beside(path: Path, url: str) -> str:
    """A node's URL; the path of an ipc socket is relative to the file."""
    return url if "://" in url else str(path.parent / Path(url).expanduser())
