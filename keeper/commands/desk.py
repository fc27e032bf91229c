"""A signer's desk: the configuration and the chain, where there are any, and the files that lie on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keeper import assembly
from keeper.chain.client import Chain
from keeper.config import Settings
from keeper.errors import ChainError, ConfigError, ExecutionError
from keeper.multisig.decode import Pins
from keeper.types import Wei

_DEFAULT: Final = Path("keeper.toml")


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with: the configuration and the chain, each where there is one; `why_not` says why none."""

    settings: Settings | None
    pins: Pins | None
    chain: Chain | None
    why_not: str

    def require_chain(self) -> Chain:
        """The chain. Raises ChainError where it could not be asked."""
        if self.chain is None:
            raise ChainError(f"This needs the chain: {self.why_not}.")
        return self.chain

    @property
    def max_fee_wei(self) -> Wei:
        """The most a transaction may pay per gas. Raises ConfigError without a configuration."""
        if self.settings is None:
            raise ConfigError("This needs a configuration; name it with --config.")
        return self.settings.limits.max_fee_wei

    def require_pins(self) -> Pins:
        """The configured contracts. Raises ConfigError without them."""
        if self.pins is None:
            raise ConfigError("This needs a configuration with [contracts]; name it with --config.")
        return self.pins


@asynccontextmanager
async def open_desk(config: Path, offline: bool) -> AsyncIterator[Desk]:
    """Configuration and chain where there are any: a signer's machine may have neither."""
    if config == _DEFAULT and not _is_there(config):
        yield Desk(None, None, None, "there is no keeper.toml here")
        return
    configured = assembly.settings(config)
    contracts = configured.contracts
    pins = None
    if contracts is not None:
        names = tuple(model.name for model in configured.protocols)
        pins = Pins(configured.chain.id, contracts.safe, contracts.pause_guard, contracts.liquidator, names)
    async with AsyncExitStack() as stack:
        chain, why_not = None, "asked to work offline"
        if not offline:
            try:
                chain = (await stack.enter_async_context(assembly.open_parts(configured))).chain
            except ChainError as error:
                if error.exit_code != ChainError.exit_code:
                    raise  # a wrong chain is a mistake, not an absence
                why_not = f"no node answers ({str(error).rstrip('.')})"
        yield Desk(configured, pins, chain, why_not)


def read_text(file: Path) -> str:
    """A file somebody sent. Raises ConfigError where it cannot be read, ExecutionError where it is no text."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        raise ExecutionError(f"{file} is not text in UTF-8; have it sent again.") from None


def write_new(path: Path, content: str) -> None:
    """A new file; what is there is never overwritten. Raises ConfigError."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{path} is there already and is not overwritten; choose another file.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); choose another file.") from error


def rewrite(path: Path, content: str) -> None:
    """All or nothing: a half-written file would lose signatures."""
    half = path.with_name(f".{path.name}.half")
    try:
        half.write_text(content, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); choose another file.") from error


def _is_there(path: Path) -> bool:
    return path.exists()
