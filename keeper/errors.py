"""The error tree: raise for breakage, return a `Refusal` for a decision.

KeeperError
├── ConfigError        a file, flag or secret is missing or wrong        exit code 2
├── ChainError         a node cannot be reached or answers nonsense      exit code 3
│   ├── RpcError       a node answered a request with a JSON-RPC error
│   ├── WrongChain     a node serves another chain than the configured one
│   └── NoQuorum       fewer providers than must agree answered, or they disagree
├── AdapterError       a protocol or venue answered what its adapter cannot read
├── ExecutionError     a transaction could not be built, signed or accounted for
│   ├── KeyMisuse      the operator key was asked to sign what it must not
│   └── SignerError    whoever holds the operator key did not sign, or not with it; or the key may not now
└── LedgerError        the record cannot be written or does not add up

Every message is one sentence: what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class KeeperError(Exception):
    """Base of every error the keeper raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(KeeperError):
    """A file, flag or secret is missing or wrong."""

    exit_code = 2


class ChainError(KeeperError):
    """A node cannot be reached or answers nonsense."""

    exit_code = 3


class RpcError(ChainError):
    """A node answered a request with a JSON-RPC error.

    `code` and `message` are the node's own; `data` is the revert data when there was any.
    """

    def __init__(self, method: str, code: int, message: str, data: bytes = b"") -> None:
        super().__init__(f"{method} failed: {message} (code {code})")
        self.method = method
        self.code = code
        self.message = message
        self.data = data


class WrongChain(ChainError):
    """A node serves another chain than the configured one."""

    exit_code = 2


class NoQuorum(ChainError):
    """Fewer providers than must agree answered, or they disagree; what they were asked is unknown.

    `lacked` says that all others were there but did not have what was asked for.
    """

    def __init__(self, message: str, *, lacked: bool = False) -> None:
        super().__init__(message)
        self.lacked = lacked


class AdapterError(KeeperError):
    """A protocol or venue answered what its adapter cannot read."""


class ExecutionError(KeeperError):
    """A transaction could not be built, signed or accounted for."""


class KeyMisuse(ExecutionError):
    """The operator key was asked to sign what it must not."""


class SignerError(ExecutionError):
    """Whoever holds the operator key did not answer, refused, or answered what is not its signature; or the key's own
    gas budget has no room for the moment.
    """


class LedgerError(KeeperError):
    """The record cannot be written or does not add up."""
