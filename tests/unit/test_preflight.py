from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keeper import abi
from keeper.errors import ConfigError
from keeper.installation import (
    code_fault,
    immutables_fault,
    liquidator_immutables,
    pause_guard_immutables,
)
from keeper.preflight import Check, require
from keeper.preflight.findings import dollars, why_not
from keeper.preflight.surroundings import unwritable
from keeper.types import Address, Refusal

SAFE, TREASURY, GUARD, THIEF = (Address(bytes([n]) * 20) for n in (0x5A, 0x7E, 0x60, 0x66))


@dataclass(frozen=True)
class FakeBuild:
    """A build of 150 bytes with three gaps, as an artifact offers it."""

    name: str = "Liquidator"
    runtime: str = "0x" + "60" * 10 + "00" * 32 + "61" * 10 + "00" * 32 + "62" * 10 + "00" * 32 + "63" * 24
    immutables: tuple[tuple[int, int], ...] = ((10, 32), (52, 32), (94, 32))

    def creation_code(self) -> bytes:
        """Not needed here."""
        return b""


BUILD = FakeBuild()
WANTED = liquidator_immutables(SAFE, TREASURY, GUARD)


def installed(first: Address, second: Address, third: Address) -> bytes:
    """The fake build's code with its gaps filled."""
    code = bytearray.fromhex(BUILD.runtime[2:])
    for (offset, length), value in zip(BUILD.immutables, (first, second, third), strict=True):
        code[offset : offset + length] = value.rjust(length, b"\0")
    return bytes(code)


# --- code ------------------------------------------------------------------------------------------------------------


def test_the_build_with_the_wanted_immutables_has_no_fault() -> None:
    """Whatever stands in the gaps, the code is the build's; with the wanted values nothing is left to complain of."""
    code = installed(SAFE, TREASURY, GUARD)
    assert code_fault(BUILD, code) is None
    assert immutables_fault(BUILD, code, WANTED) is None


@given(st.integers(0, 149), st.integers(1, 255))
def test_any_changed_byte_is_a_fault(at: int, change: int) -> None:
    """One byte anywhere is found: outside the gaps as other code, inside as another immutable."""
    code = bytearray(installed(SAFE, TREASURY, GUARD))
    code[at] ^= change
    in_gap = any(offset <= at < offset + length for offset, length in BUILD.immutables)
    fault = code_fault(BUILD, bytes(code))
    if in_gap:
        assert fault is None
        assert immutables_fault(BUILD, bytes(code), WANTED) is not None
    else:
        was = bytes.fromhex(BUILD.runtime[2:])[at]
        assert fault == f"has byte {was ^ change:#04x} at {at} where the build of Liquidator has {was:#04x}"


def test_missing_and_longer_code_is_said_so() -> None:
    """No code and another length have their own words."""
    assert code_fault(BUILD, b"") == "has no code"
    longer = installed(SAFE, TREASURY, GUARD) + b"\0"
    assert code_fault(BUILD, longer) == "has 151 bytes of code where the build of Liquidator has 150"


def test_a_strangers_address_in_any_gap_is_named() -> None:
    """The sentence shows whose it is, where it stands, and what was wanted."""
    fault = immutables_fault(BUILD, installed(SAFE, THIEF, GUARD), WANTED)
    assert fault is not None
    assert fault.startswith(
        f"holds {abi.checksum(THIEF)} at byte 52, which is none of SAFE {abi.checksum(SAFE)}"
    )


def test_a_wanted_address_that_stands_nowhere_is_named() -> None:
    """Two gaps with the same address leave one that nothing holds."""
    fault = immutables_fault(BUILD, installed(SAFE, SAFE, GUARD), WANTED)
    assert fault == f"does not hold TREASURY {abi.checksum(TREASURY)}"


def test_the_pause_guards_words_follow_its_constructor() -> None:
    """The delay is a plain number, and the domain is bound to the guard's address and to no chain."""
    here, there = pause_guard_immutables(SAFE, 1800, GUARD), pause_guard_immutables(SAFE, 1800, THIEF)
    assert int.from_bytes(here["UNPAUSE_DELAY"]) == 1800
    assert here["SAFE"] == there["SAFE"] == SAFE.rjust(32, b"\0")
    assert here["DOMAIN_SEPARATOR"] != there["DOMAIN_SEPARATOR"]


# --- what a start depends on -----------------------------------------------------------------------------------------


def test_warnings_are_returned_and_stop_nothing() -> None:
    """Only what is wrong and not required comes back."""
    good = Check("a", True, "It is.")
    fine = Check("b", True, "It is.", required=False)
    warning = Check("c", False, "It is odd.", "Look at it.", required=False)
    assert require([good, warning, fine]) == [warning]


def test_the_first_required_failure_is_raised_as_one_sentence() -> None:
    """What was found and what to do, in that order, and nothing of what follows."""
    checks = [
        Check("c", False, "It is odd.", "Look at it.", required=False),
        Check("d", False, "contracts.safe 0xA has no code.", "Correct it in the configuration."),
        Check("e", False, "More is wrong.", "Much more."),
    ]
    with pytest.raises(ConfigError) as caught:
        require(checks)
    assert str(caught.value) == "contracts.safe 0xA has no code: correct it in the configuration."


# --- words and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usd_e8", "text"),
    [
        (0, "0.00"),
        (200_000_000_000, "2000.00"),
        (99_980_000, "0.9998"),
        (1, "0.00000001"),
        (150_000_000, "1.50"),
    ],
)
def test_dollars_keep_every_digit_that_says_something(usd_e8: int, text: str) -> None:
    """At least cents, and no price is rounded away."""
    assert dollars(usd_e8) == text


@pytest.mark.parametrize(
    ("reason", "numbers", "words"),
    [
        (
            "stale_price",
            {"answer": 5, "age_s": 90_001, "max_age_s": 90_000},
            "last answered 90001 s ago, more than",
        ),
        ("no_price", {"answer": -1, "age_s": 3, "max_age_s": 90_000}, "answers -1, which is no price"),
        ("no_price", {"error": "0x"}, "does not answer latestRoundData() and decimals()"),
    ],
)
def test_a_price_that_is_missing_is_explained(reason: str, numbers: Mapping[str, object], words: str) -> None:
    """Old, absurd and absent are three different things to fix."""
    assert why_not(Refusal("plan", reason, numbers)).startswith(words)


def test_where_the_record_cannot_be_kept_is_explained(tmp_path: Path) -> None:
    """A missing folder and a folder in the file's place are faults; a new and an old file are not."""
    assert unwritable(tmp_path / "new.db") is None
    (tmp_path / "old.db").write_bytes(b"")
    assert unwritable(tmp_path / "old.db") is None
    assert unwritable(tmp_path / "gone" / "k.db") == f"there is no folder {tmp_path / 'gone'}"
    (tmp_path / "folder.db").mkdir()
    assert unwritable(tmp_path / "folder.db") == "it is not a file"


@pytest.mark.parametrize(
    ("denied", "words"),
    [("folder", "the folder {folder} is not writable"), ("file", "it is not writable")],
)
def test_a_record_without_permission_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str, words: str
) -> None:
    """What the operating system denies is told; it is asked in its stead, because a superuser is denied nothing."""
    file = tmp_path / "k.db"
    file.write_bytes(b"")
    refused = tmp_path if denied == "folder" else file
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != refused)
    assert unwritable(file) == words.format(folder=tmp_path)
