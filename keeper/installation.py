"""What our two contracts must look like on a chain: the build's code, and the settings only the Safe can make.

`keeper deploy` brings this about and `keeper doctor` and `keeper run` check it; both read it here, so the two cannot
disagree. Each setting carries the call that makes it and the read that shows it; a setting that holds already, in
whatever way the Safe chose, is not asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from keeper import abi
from keeper.errors import AdapterError, ConfigError
from keeper.guard import scope_of
from keeper.seams import Adapter, FlashKind, FlashSource, Reads, Venue, VenueKind
from keeper.typed_data import guard_domain
from keeper.types import ZERO_ADDRESS, Address, Call, Hash, Reverted, hex_of

LIQUIDATOR: Final = abi.load("Liquidator")
PAUSE_GUARD: Final = abi.load("PauseGuard")

# Chainlink's slowest USD feeds answer once a day; an hour more is what their own contracts allow for being late.
FEED_MAX_AGE_S: Final = 25 * 60 * 60

SLIPPAGE: Final = "slippage limit"

_WORD: Final = 32


class Build(Protocol):
    """A compiled contract as `keeper.lab.solc` makes it; immutables are (offset, length) in the 0x-hex `runtime`."""

    @property
    def name(self) -> str:
        """The contract's name."""

    @property
    def runtime(self) -> str:
        """Runtime code, zeros where the constructor writes immutables."""

    @property
    def immutables(self) -> Sequence[tuple[int, int]]:
        """Where immutables stand in the runtime code."""

    def creation_code(self) -> bytes:
        """Code that creates the contract, to which constructor arguments are appended."""


# --- code ------------------------------------------------------------------------------------------------------------


def liquidator_immutables(safe: Address, treasury: Address, pause_guard: Address) -> dict[str, bytes]:
    """What the Liquidator's code must hold, by getter, in words as the EVM keeps them."""
    return {"SAFE": _word(safe), "TREASURY": _word(treasury), "GUARD": _word(pause_guard)}


def pause_guard_immutables(safe: Address, unpause_delay_s: int, pause_guard: Address) -> dict[str, bytes]:
    """What PauseGuard's code must hold, by getter, in words as the EVM keeps them."""
    delay, domain = unpause_delay_s.to_bytes(_WORD), guard_domain(pause_guard)
    return {"SAFE": _word(safe), "UNPAUSE_DELAY": delay, "DOMAIN_SEPARATOR": domain}


def code_fault(build: Build, code: bytes) -> str | None:
    """How `code`, read from a chain, differs from the build outside immutables, as a clause; None if it does not."""
    if not code:
        return "has no code"
    expected = bytes.fromhex(build.runtime.removeprefix("0x"))
    if len(code) != len(expected):
        return f"has {len(code)} bytes of code where the build of {build.name} has {len(expected)}"
    masked, wanted = bytearray(code), bytearray(expected)
    for offset, length in build.immutables:
        masked[offset : offset + length] = wanted[offset : offset + length] = bytes(length)
    for at, (is_byte, build_byte) in enumerate(zip(masked, wanted, strict=True)):
        if is_byte != build_byte:
            return f"has byte {is_byte:#04x} at {at} where the build of {build.name} has {build_byte:#04x}"
    return None


def immutables_fault(build: Build, code: bytes, wanted: Mapping[str, bytes]) -> str | None:
    """How the immutables of code without a `code_fault` differ from the wanted words, as a clause.

    Every place where the build leaves a gap may hold only one of them, and each must be held: so no address but the
    wanted ones is a treasury, a guard or a Safe anywhere in the code, whatever its getters say.
    """
    held = {offset: code[offset : offset + length] for offset, length in build.immutables}
    for offset, value in held.items():
        if value not in wanted.values():
            known = ", ".join(f"{name} {_shown(word)}" for name, word in wanted.items())
            return f"holds {_shown(value)} at byte {offset}, which is none of {known}"
    for name, value in wanted.items():
        if value not in held.values():
            return f"does not hold {name} {_shown(value)}"
    return None


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SafeCall:
    """A call the Safe must make; `text` is the call as a signer reads it, `meaning` what it is for."""

    to: Address
    data: bytes
    text: str
    meaning: str

    @property
    def what(self) -> str:
        """Both, in one line."""
        return f"{self.text}: {self.meaning}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Something the Liquidator must be told: the call that does it, and how to see whether it was done.

    `subject` names it in a check; `holds` judges the getter's decoded answer and `shown` puts it into words. A feed
    names its `token`.
    """

    subject: str
    call: SafeCall
    read: Call
    decode: Callable[[bytes], Any]
    holds: Callable[[Any], bool]
    shown: Callable[[Any], str]
    token: Address | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What the Liquidator is used for; adapters and flash sources are loaded already.

    `feeds` are aggregators for tokens that no protocol prices, or that override the protocol's own.
    """

    operator: Address
    adapters: Sequence[Adapter]
    venues: Sequence[Venue]
    flash_sources: Sequence[FlashSource]
    max_slippage_bps: int
    feeds: Mapping[Address, Address] = field(default_factory=dict)
    feed_max_age_s: int = FEED_MAX_AGE_S


def settings_of(liquidator: Address, needs: Needs) -> list[Setting]:
    """Every setting the Liquidator needs, in the order a signer would read them."""
    settings = [_operator(liquidator, needs.operator)]
    for adapter in needs.adapters:
        settings += [_target(liquidator, adapter.name, *target) for target in adapter.targets()]
        if adapter.settled_jointly:
            settings.append(_settled_jointly(liquidator, adapter.name))
    settings += [_flash_source(liquidator, source.source(), source.kind) for source in needs.flash_sources]
    settings += [_venue(liquidator, venue.router, venue.kind) for venue in needs.venues]
    settings += [
        feed_setting(liquidator, token, feed, needs.feed_max_age_s) for token, feed in feeds_of(needs).items()
    ]
    settings.append(_slippage(liquidator, needs.max_slippage_bps))
    return settings


def feeds_of(needs: Needs) -> dict[Address, Address]:
    """The aggregator of every token: the configured one, else the first that a protocol names."""
    feeds: dict[Address, Address] = {}
    for adapter in needs.adapters:
        for token, feed in adapter.feeds().items():
            feeds.setdefault(token, feed)
    return feeds | dict(needs.feeds)


def read_settings(settings: Sequence[Setting]) -> Reads[list[Any]]:
    """What the Liquidator says for each setting now; raises `ConfigError` if it does not answer as one."""
    results = yield [setting.read for setting in settings]
    values = []
    for setting, result in zip(settings, results, strict=True):
        fault = f"{abi.checksum(setting.read.to)} answers unlike a Liquidator about the {setting.subject}"
        if isinstance(result, Reverted):
            raise ConfigError(f"{fault}: it reverts with {hex_of(result.data)}; check contracts.liquidator.")
        try:
            values.append(setting.decode(result))
        except AdapterError as error:
            raise ConfigError(f"{fault}: {error}") from error
    return values


def setup_calls(liquidator: Address, needs: Needs) -> list[SafeCall]:
    """Every call that sets up a new Liquidator."""
    return [setting.call for setting in settings_of(liquidator, needs)]


def missing_setup(liquidator: Address, needs: Needs) -> Reads[list[SafeCall]]:
    """The calls still needed, given what the Liquidator says now."""
    settings = settings_of(liquidator, needs)
    values = yield from read_settings(settings)
    return [setting.call for setting, value in zip(settings, values, strict=True) if not setting.holds(value)]


def feed_setting(
    liquidator: Address, token: Address, feed: Address, max_age_s: int = FEED_MAX_AGE_S
) -> Setting:
    """The USD feed of a token. Another feed than `feed` is the Safe's own choice and holds as well."""
    return _setting(
        liquidator,
        f"feed of {abi.checksum(token)}",
        ("feedOf", token),
        ("setFeed", token, feed, max_age_s),
        f"value the token by this feed's answers, none older than {max_age_s} s",
        lambda value: value[0] != ZERO_ADDRESS,
        lambda value: (
            "missing" if value[0] == ZERO_ADDRESS else f"{abi.checksum(value[0])}, up to {value[1]} s old"
        ),
        token,
    )


def _operator(liquidator: Address, operator: Address) -> Setting:
    return _setting(
        liquidator,
        f"operator {abi.checksum(operator)}",
        ("isOperator", operator),
        ("setOperator", operator, True),
        "let it start liquidations",
        bool,
        lambda value: "enabled" if value else "unknown",
    )


def _target(liquidator: Address, protocol: str, target: Address, selector: bytes) -> Setting:
    scope = scope_of(protocol)
    return _setting(
        liquidator,
        f"target {abi.checksum(target)} {hex_of(selector)} of {protocol}",
        ("protocolOf", target, selector),
        ("setTarget", target, selector, scope),
        f'let it make this call there in the pause scope "{protocol}"',
        lambda value: value == scope,
        lambda value: f'in the scope "{_scope_text(value)}"' if any(value) else "not allowed",
    )


def _settled_jointly(liquidator: Address, protocol: str) -> Setting:
    scope = scope_of(protocol)
    return _setting(
        liquidator,
        f"settlement of {protocol}",
        ("settledJointly", scope),
        ("setSettledJointly", scope, True),
        f'judge all calls of one execution together in the pause scope "{protocol}"',
        bool,
        lambda jointly: "all calls together" if jointly else "each call alone",
    )


def _flash_source(liquidator: Address, source: Address, kind: FlashKind) -> Setting:
    return _setting(
        liquidator,
        f"flash source {abi.checksum(source)}",
        ("flashKindOf", source),
        ("setFlashSource", source, int(kind)),
        f"let it borrow there for one transaction ({kind.name})",
        lambda value: value == kind,
        lambda value: f"of kind {FlashKind(value).name}" if value else "not allowed",
    )


def _venue(liquidator: Address, router: Address, kind: VenueKind) -> Setting:
    return _setting(
        liquidator,
        f"router {abi.checksum(router)}",
        ("venueKindOf", router),
        ("setVenue", router, int(kind)),
        f"let it swap there ({kind.name})",
        lambda value: value == kind,
        lambda value: f"of kind {VenueKind(value).name}" if value else "not allowed",
    )


def _slippage(liquidator: Address, max_slippage_bps: int) -> Setting:
    return _setting(
        liquidator,
        SLIPPAGE,
        ("maxSlippageBps",),
        ("setMaxSlippageBps", max_slippage_bps),
        f"a liquidation may lose at most {max_slippage_bps} basis points of what it seizes",
        # a stricter limit is the Safe's own choice, but 0 is what a limit never set looks like
        lambda bps: bps <= max_slippage_bps and bool(bps or not max_slippage_bps),
        lambda bps: f"{bps} basis points",
    )


def _setting(
    liquidator: Address,
    subject: str,
    read: tuple[Any, ...],
    write: tuple[Any, ...],
    meaning: str,
    holds: Callable[[Any], bool],
    shown: Callable[[Any], str],
    token: Address | None = None,
) -> Setting:
    getter, setter = LIQUIDATOR.function(read[0]), LIQUIDATOR.function(write[0])
    text = f"{write[0]}({', '.join(_argument(value) for value in write[1:])})"
    call = SafeCall(liquidator, setter.encode(*write[1:]), text, meaning)
    return Setting(subject, call, getter.call(liquidator, *read[1:]), getter.one, holds, shown, token)


def _scope_text(scope: bytes) -> str:
    return scope.rstrip(b"\0").decode("ascii", "replace")


def _argument(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value).lower()
    return abi.checksum(value) if len(value) == len(ZERO_ADDRESS) else hex_of(value)


def _word(address: Address) -> bytes:
    return address.rjust(_WORD, b"\0")


def _shown(word: bytes) -> str:
    return abi.checksum(word[-20:]) if not any(word[:12]) and any(word[12:20]) else hex_of(Hash(word))
