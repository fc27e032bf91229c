"""Settings: one TOML file, overridden by the environment, frozen once read.

Nothing is guessed: unknown keys, numbers in quotes, fractions of whole units and negative amounts fail with the key
and where it was written, all problems at once. Numbers are `int` or `Decimal`, never float; addresses are 20 bytes.
Relative paths are relative to the file, so a command means the same wherever it is started.

Precedence: environment, then `.env` beside the file, then the file. `KEEPER__SECTION__KEY` overrides one value
(`KEEPER__PROTOCOLS__0__NAME`; lists are JSON or separated by commas). Secrets never come from the file.

This module knows no protocol and no venue: their models come in through `load`, keyed by `kind`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_validator

from keeper import abi
from keeper.data_fee import DataFeeKind
from keeper.errors import ConfigError
from keeper.log import secrets
from keeper.reading import Document, Key, dotted, rewrite_table, shown
from keeper.signer import (
    SECRETS,
    SIGNERS,
    AnySigner,
    AwsKmsSigner,
    Web3SignerSigner,
    signer_secrets,
)
from keeper.thresholds import Breakers, Limits, Section, Usd, scaled
from keeper.types import Address

PRIVATE_KEY: Final = "KEEPER_PRIVATE_KEY"
DEPLOYER_KEY: Final = "KEEPER_DEPLOYER_KEY"
RELAY_KEY: Final = "KEEPER_RELAY_KEY"
_EVERYTHING: Final = "global"  # as signers and the record name the scope that stops all
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_PLACEHOLDERS: Final = (
    "",
    "0x",
    "0x…",
    "0x...",
    "0x" + "0" * 40,
)  # what [contracts] holds before `keeper deploy`


class Chain(Section):
    """`[chain]`: which chain, and who is asked about it."""

    id: int = Field(gt=0, description="Chain id; a node that serves another chain is refused.")
    rpc_urls: tuple[str, ...] = Field(
        min_length=1,
        repr=False,
        description="Nodes as http(s) or ws(s) URLs or ipc paths; several serve as failover and quorum.",
    )
    quorum: int = Field(
        1, ge=1, description="How many nodes must agree on everything; 1 believes a single node."
    )
    max_requests_per_s: int = Field(
        0, ge=0, description="Most requests a second to each node; 0: as many as it takes."
    )
    max_head_age_s: int = Field(
        26, gt=0, le=86_400, description="Nothing is signed on a head older than this, in seconds."
    )
    wrapped_native: Address = Field(description="The chain's wrapped native token (WETH).")
    data_fee: DataFeeKind = Field(
        "none", description="How a rollup charges for bytes; none: it is no rollup."
    )

    @field_validator("rpc_urls")
    @classmethod
    def _reachable(cls, urls: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        places = tuple(_node(url, info) for url in urls)
        if len(set(places)) != len(places):
            raise ValueError("a node is listed twice; list each once, or a quorum would count it twice.")
        return places

    @field_validator("quorum")
    @classmethod
    def _enough_nodes(cls, quorum: int, info: ValidationInfo) -> int:
        nodes = len(info.data.get("rpc_urls", ()))
        if quorum > nodes > 0:
            raise ValueError(
                f"{quorum} nodes cannot agree when rpc_urls lists {nodes}; add nodes or lower it."
            )
        return quorum


class Contracts(Section):
    """`[contracts]`: what `keeper deploy` deployed and for whom."""

    liquidator: Address = Field(description="The Liquidator contract.")
    pause_guard: Address = Field(description="The PauseGuard contract.")
    safe: Address = Field(description="The Safe that owns the settings of both.")
    treasury: Address = Field(description="Where every profit goes.")


class Profit(Section):
    """`[profit]`: what a liquidation must earn."""

    token: Address = Field(description="The token profit is measured and kept in.")
    keep: tuple[Address, ...] = Field(
        (), description="Seized tokens to keep: only what repays the loan is sold."
    )
    min_profit_usd: Usd = Field(Decimal(5), description="Least net profit of a liquidation, in USD.")
    max_slippage_bps: int = Field(
        100, ge=0, le=1000, description="Most a swap may lose against the quote, in basis points."
    )
    native_usd_feed: Address = Field(description="Chainlink-style aggregator of the native token in USD.")

    @field_validator("keep")
    @classmethod
    def _others(cls, keep: tuple[Address, ...], info: ValidationInfo) -> tuple[Address, ...]:
        if len({info.data.get("token"), *keep}) != len(keep) + 1:
            raise ValueError("a token is listed twice, or is profit.token, which is kept anyway.")
        return keep

    @property
    def min_profit_usd_e8(self) -> int:
        """The least net profit in USD with 8 decimals, exactly."""
        return scaled(self.min_profit_usd, 8)


class Flash(Section):
    """`[flash]`: where the repayment may be borrowed, beside the Aave pools and Morphos of [[protocols]]."""

    morpho: Address | None = Field(None, description="A Morpho Blue outside [[protocols]]; no premium.")
    uniswap_v3_pools: tuple[Address, ...] = Field(
        (), description="Uniswap V3 pools that lend for their fee; while one lends, nothing is swapped there."
    )

    @field_validator("uniswap_v3_pools")
    @classmethod
    def _different(cls, pools: tuple[Address, ...]) -> tuple[Address, ...]:
        if len(set(pools)) != len(pools):
            raise ValueError("a pool is listed twice; list each once.")
        return pools


class Send(Section):
    """`[send]`: how transactions reach a block."""

    route: Literal["public", "private", "bundle"] = Field(
        "public", description="The pool of the nodes of [chain], or what the relays are asked for."
    )
    relays: tuple[str, ...] = Field(
        (), repr=False, description="Relays or builders, as http(s) URLs; all get the same bytes."
    )
    fallback: Literal["none", "public"] = Field(
        "none", description="Where a liquidation goes that no relay got mined; none: it expires unseen."
    )
    fallback_after_blocks: int = Field(2, ge=1, le=100, description="After how many blocks it goes there.")
    refund_percent: int = Field(
        0, ge=0, le=99, description="Of a bundle's reward, asked back from builders for the operator."
    )
    priority_share_bps: int = Field(0, ge=0, le=10_000, description="Of the net profit, added to the tip.")

    @field_validator("relays")
    @classmethod
    def _usable(cls, relays: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        route = info.data.get("route", "public")
        if route == "public" and relays:
            raise ValueError('relays are not used by the route "public"; set relays = [].')
        if route != "public" and not relays:
            raise ValueError(f'the route "{route}" needs at least one relay; add its URL.')
        if any(not url.startswith(("http://", "https://")) for url in relays):
            raise ValueError("a relay must be an http:// or https:// URL.")
        if len(set(relays)) != len(relays):
            raise ValueError("a relay is listed twice; list each once.")
        return relays

    @field_validator("fallback", "refund_percent")
    @classmethod
    def _of_relays(cls, value: str | int, info: ValidationInfo) -> str | int:
        route = info.data.get("route", "bundle")
        if value == "public" and route == "public":
            raise ValueError('the route "public" has no fallback; set fallback = "none".')
        if isinstance(value, int) and value and route != "bundle":
            raise ValueError('only bundles are refunded; set route = "bundle" or refund_percent = 0.')
        return value


class Guard(Section):
    """`[guard]`: the local stop."""

    halt_file: Path = Field(
        Path("keeper.halt"),
        description="While this file exists nothing is signed; any program may create it.",
    )

    @field_validator("halt_file")
    @classmethod
    def _beside(cls, path: Path, info: ValidationInfo) -> Path:
        return _base(info) / path.expanduser()


class Pause(Section):
    """`[pause]`: when a pause is over."""

    unpause_confirmations: int = Field(
        64, ge=0, le=100_000, description="Blocks on top of an unpause before it counts."
    )


class Resume(Section):
    """`[resume]`: beginning small again after a pause."""

    canary_usd: Usd = Field(
        Decimal(1000), gt=0, description="Most debt repaid by the first liquidation after a pause, in USD."
    )

    @property
    def canary_usd_e8(self) -> int:
        """The first liquidation's largest repaid debt in USD with 8 decimals, exactly."""
        return scaled(self.canary_usd, 8)


class StoreSettings(Section):
    """`[store]`: where the record is kept."""

    url: str = Field("sqlite:///keeper.db", repr=False, description="The record: sqlite:///file.")

    @field_validator("url")
    @classmethod
    def _beside(cls, url: str, info: ValidationInfo) -> str:
        file = url.removeprefix("sqlite:///")
        if file == url or not file or file == ":memory:" or "?" in file:
            raise ValueError("the record must be an SQLite file in this version; write sqlite:///keeper.db.")
        return f"sqlite:///{_base(info) / Path(file).expanduser()}"


class Settings(Section):
    """Everything a run needs, checked. Protocols and venues are the models given to `load`, in the file's order."""

    path: Path
    chain: Chain
    contracts: Contracts | None
    signer: AnySigner
    profit: Profit
    flash: Flash
    limits: Limits
    breakers: Breakers
    send: Send
    guard: Guard
    pause: Pause
    resume: Resume
    store: StoreSettings
    protocols: tuple[Any, ...]
    venues: tuple[Any, ...]
    operator_secret: SecretStr | None
    deployer_secret: SecretStr | None
    relay_secret: SecretStr | None
    signer_secrets: Mapping[str, SecretStr]  # passwords and credentials, by their names

    def require_contracts(self) -> Contracts:
        """The deployed contracts, or `ConfigError` before `keeper deploy`."""
        if self.contracts is None:
            raise ConfigError(f"{self.path}: [contracts] is not filled in; run `keeper deploy` first.")
        return self.contracts

    def private_key(self) -> str:
        """The operator's key in hex, or `ConfigError` when it was not given."""
        return self._secret(PRIVATE_KEY, self.operator_secret)

    def deployer_key(self) -> str:
        """The key that pays for deploying, in hex, or `ConfigError` when it was not given."""
        return self._secret(DEPLOYER_KEY, self.deployer_secret)

    def relay_key(self) -> str:
        """The key that relays know us by, in hex, or `ConfigError` when it was not given."""
        return self._secret(RELAY_KEY, self.relay_secret)

    def signer_secret(self, name: str) -> str:
        """A password or credential that the kind of signer needs, or `ConfigError` when it was not given."""
        return self._secret(name, self.signer_secrets.get(name))

    def _secret(self, name: str, value: SecretStr | None) -> str:
        if value is None:
            env = self.path.parent / ".env"
            raise ConfigError(f"{name} is not set; put it in {env} or in the environment.")
        return value.get_secret_value()


_SECTIONS: Final[Mapping[str, type[Section]]] = {
    "chain": Chain,
    "profit": Profit,
    "flash": Flash,
    "limits": Limits,
    "breakers": Breakers,
    "send": Send,
    "guard": Guard,
    "pause": Pause,
    "resume": Resume,
    "store": StoreSettings,
}
_REQUIRED: Final = ("chain", "profit")


def load(
    path: Path,
    protocol_models: Mapping[str, type[BaseModel]],
    venue_models: Mapping[str, type[BaseModel]],
    environ: Mapping[str, str],
) -> Settings:
    """Read and check a configuration; the models say which keys a protocol or venue of that `kind` takes.

    Every model has a field `kind`, a protocol's also `name`; addresses are declared as `keeper.seams.ConfigAddress`.
    The secrets read, and keys inside node URLs, are registered with `keeper.log.secrets`. Raises `ConfigError` with one
    line per problem: where, which key, what is wrong and what to do.
    """
    path = path.expanduser().absolute()
    names = (PRIVATE_KEY, DEPLOYER_KEY, RELAY_KEY, *SECRETS)
    document = Document.read(path, environ, names)
    tables = document.tables
    known = [*_SECTIONS, "contracts", "signer", "protocols", "venues"]
    for name in tables:
        if name not in known:
            document.unknown((name,), known)
    found: dict[str, Any] = {"path": path, "contracts": _contracts(document)}
    for name, model in _SECTIONS.items():
        if name in _REQUIRED and name not in tables:
            document.fail((name,), f"this section is missing; add [{name}].")
        else:
            found[name] = document.parse(model, (name,), tables.get(name, {}))
    found["signer"] = _of_kind(document, ("signer",), tables.get("signer", {"kind": "env"}), SIGNERS)
    found["protocols"] = _protocols(document, protocol_models)
    found["venues"] = _venues(document, venue_models)
    found["operator_secret"] = _private_key(document, PRIVATE_KEY)
    found["deployer_secret"] = _private_key(document, DEPLOYER_KEY)
    found["relay_secret"] = _private_key(document, RELAY_KEY)
    rich = [_digits(found[name]) for name in ("operator_secret", "deployer_secret") if found[name]]
    if found["relay_secret"] and _digits(found["relay_secret"]) in rich:
        document.fail((RELAY_KEY,), "relays need a key of their own that owns nothing; generate one.")
    found["signer_secrets"] = signer_secrets(document.secrets, found["signer"], environ)
    document.check()
    settings = Settings(**found)
    for url in (*settings.chain.rpc_urls, *settings.send.relays):
        secrets.register_url(url)
    if isinstance(settings.signer, Web3SignerSigner | AwsKmsSigner):
        secrets.register_url(settings.signer.url)
    return settings


def write_contracts(
    path: Path, liquidator: Address, pause_guard: Address, safe: Address, treasury: Address
) -> None:
    """Fill in `[contracts]`, adding it when missing, and leave every other byte of the file as it is."""
    addresses = {"liquidator": liquidator, "pause_guard": pause_guard, "safe": safe, "treasury": treasury}
    rewrite_table(path, "contracts", {name: abi.checksum(address) for name, address in addresses.items()})


def _contracts(document: Document) -> Contracts | None:
    raw = document.tables.get("contracts", {})
    if isinstance(raw, dict) and all(value in _PLACEHOLDERS for value in raw.values()):
        for name in raw:
            if name not in Contracts.model_fields:
                document.unknown(("contracts", name), list(Contracts.model_fields))
        return None
    return document.parse(Contracts, ("contracts",), raw)


def _protocols(document: Document, models: Mapping[str, type[BaseModel]]) -> list[BaseModel | None]:
    tables = document.list_of_tables("protocols")
    if not tables:
        document.fail(("protocols",), "there is no protocol to watch; add a [[protocols]] table.")
    names: set[str] = set()
    for index, table in enumerate(tables):
        key: Key = ("protocols", index, "name")
        name = table.get("name")
        if name is None:
            document.fail(key, "this key is missing; add it.")
        elif not isinstance(name, str) or not _NAME.fullmatch(name):
            rule = "use 1 to 31 of a-z, 0-9 and -, beginning with a letter or digit."
            document.fail(key, f"{shown(name)} is not a usable name; {rule}")
        elif name == _EVERYTHING:
            document.fail(key, f"{shown(name)} is the pause scope of everything; choose another name.")
        elif name in names:
            document.fail(key, f"{shown(name)} is used by another protocol; every name must differ.")
        else:
            names.add(name)
    return [_of_kind(document, ("protocols", index), table, models) for index, table in enumerate(tables)]


def _venues(document: Document, models: Mapping[str, type[BaseModel]]) -> list[BaseModel | None]:
    tables = document.list_of_tables("venues")
    return [_of_kind(document, ("venues", index), table, models) for index, table in enumerate(tables)]


def _of_kind(
    document: Document, key: Key, table: Any, models: Mapping[str, type[BaseModel]]
) -> BaseModel | None:
    if not isinstance(table, dict):
        document.fail(key, f"{shown(table)} is not a table; write [{dotted(key)}] above its keys.")
        return None
    kind = table.get("kind")
    model = models.get(kind) if isinstance(kind, str) else None
    if model is None:
        allowed = ", ".join(sorted(models)) or "none"
        what = "this key is missing" if kind is None else f"{shown(kind)} is not a known kind"
        document.fail((*key, "kind"), f"{what}; the kinds are: {allowed}.")
        return None
    return document.parse(model, key, table)


def _private_key(document: Document, name: str) -> SecretStr | None:
    text = document.secrets.get(name)
    if text is None:
        return None
    if len(text) > 16:
        secrets.register(text)  # even if it is none: a key with a typing slip is still nearly the key
    if not re.fullmatch(r"(?:0x)?[0-9a-fA-F]{64}", text):
        document.fail((name,), "this secret is not a private key; it must be 32 bytes in hex.")
        return None
    return SecretStr(text)


def _digits(secret: SecretStr) -> str:
    return secret.get_secret_value().lower().removeprefix("0x")


def _node(url: str, info: ValidationInfo) -> str:
    scheme, separator, rest = url.partition("://")
    if separator:
        if scheme not in ("http", "https", "ws", "wss") or not rest:
            raise ValueError(
                "a node must be an http://, https://, ws:// or wss:// URL or the path of an ipc socket."
            )
        return url
    if not url.startswith(("/", "./", "../", "~/")):
        raise ValueError("a node must be a URL, or an ipc path beginning with /, ./ or ~/.")
    return str(_base(info) / Path(url).expanduser())


def _base(info: ValidationInfo) -> Path:
    """The folder of the file; models made by hand keep their paths as they are."""
    context: Mapping[str, Path] = info.context or {}
    return context.get("base", Path())
