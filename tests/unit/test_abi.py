from __future__ import annotations

import json
from typing import Any

import pytest
from eth_abi import abi as eth_abi
from eth_utils.address import to_checksum_address
from hypothesis import given, settings
from hypothesis import strategies as st

from keeper import abi
from keeper.abi import Abi
from keeper.errors import AdapterError, ConfigError
from keeper.types import Address, BlockNumber, Hash, Log

ALICE = Address(bytes.fromhex("f39fd6e51aad88f6f4ce6ab8827279cfffb92266"))
ALICE_TEXT = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


def spelled(kind: str) -> dict[str, Any]:
    """An ABI component for a type in eth_abi's spelling, where tuples are parentheses."""
    if not kind.startswith("("):
        return {"name": "", "type": kind}
    inner, suffix = kind[1:].rsplit(")", 1)
    parts, depth, start = [], 0, 0
    for at, char in enumerate(inner):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "," and not depth:
            parts.append(inner[start:at])
            start = at + 1
    parts.append(inner[start:])
    return {"name": "", "type": f"tuple{suffix}", "components": [spelled(part) for part in parts]}


def function_of(*kinds: str) -> abi.Function:
    """f(kinds) returns (kinds)."""
    parts = [spelled(kind) for kind in kinds]
    return Abi.from_json([{"type": "function", "name": "f", "inputs": parts, "outputs": parts}]).function("f")


def log_of(data: bytes, *topics: bytes) -> Log:
    """A log with these contents."""
    block = BlockNumber(1)
    return Log(
        ALICE, tuple(Hash(topic) for topic in topics), data, block, Hash(bytes(32)), Hash(bytes(32)), 0
    )


_WORDS: dict[str, st.SearchStrategy[Any]] = {
    "uint256": st.integers(0, 2**256 - 1),
    "uint8": st.integers(0, 255),
    "uint80": st.integers(0, 2**80 - 1),
    "int256": st.integers(-(2**255), 2**255 - 1),
    "int24": st.integers(-(2**23), 2**23 - 1),
    "address": st.binary(min_size=20, max_size=20),
    "bool": st.booleans(),
    "bytes32": st.binary(min_size=32, max_size=32),
    "bytes4": st.binary(min_size=4, max_size=4),
    "bytes": st.binary(max_size=70),
    "string": st.text("aé…🦄\0", max_size=40),
}


@st.composite
def typed_values(draw: st.DrawFn, depth: int = 2) -> tuple[str, Any]:
    """A type and a value of it."""
    shape = draw(st.sampled_from(["word", "array", "fixed", "tuple"])) if depth else "word"
    if shape == "word":
        kind = draw(st.sampled_from(sorted(_WORDS)))
        return kind, draw(_WORDS[kind])
    if shape == "tuple":
        parts = [draw(typed_values(depth - 1)) for _ in range(draw(st.integers(1, 4)))]
        return f"({','.join(kind for kind, _ in parts)})", tuple(value for _, value in parts)
    kind, value = draw(typed_values(depth - 1))
    count = draw(st.integers(1, 3))
    return kind + (f"[{count}]" if shape == "fixed" else "[]"), [value] * count


def without_types(value: Any) -> Any:
    """eth_abi's values as ours: addresses as bytes, arrays as lists or tuples alike."""
    if isinstance(value, (tuple, list)):
        return [without_types(item) for item in value]
    if isinstance(value, str) and value.startswith("0x") and len(value) == 42:
        return bytes.fromhex(value[2:])
    return value


@settings(max_examples=300)
@given(st.lists(typed_values(), max_size=4))
def test_encoding_and_decoding_agree_with_eth_abi(pairs: list[tuple[str, Any]]) -> None:
    """For any types and values, calldata equals the reference library's and decodes back to the same values."""
    kinds, values = [kind for kind, _ in pairs], [value for _, value in pairs]
    function = function_of(*kinds)
    encoded = eth_abi.encode(kinds, values)
    assert function.encode(*values) == function.selector + encoded
    assert without_types(function.decode(encoded)) == without_types(values)
    assert without_types(function.decode_input(function.selector + encoded)) == without_types(values)
    assert without_types(eth_abi.decode(kinds, encoded)) == without_types(values)


@settings(max_examples=300)
@given(st.lists(typed_values(), min_size=1, max_size=3), st.data())
def test_mangled_return_data_is_an_adapter_error_or_still_a_value(
    pairs: list[tuple[str, Any]], data: st.DataObject
) -> None:
    """Cut or altered return data either decodes (what was altered may be a value) or raises AdapterError only."""
    function = function_of(*(kind for kind, _ in pairs))
    encoded = bytearray(eth_abi.encode([kind for kind, _ in pairs], [value for _, value in pairs]))
    del encoded[data.draw(st.integers(0, len(encoded))) :]
    for at in data.draw(st.lists(st.integers(0, max(0, len(encoded) - 1)), max_size=4)):
        if encoded:
            encoded[at] = data.draw(st.integers(0, 255))
    try:
        values = function.decode(bytes(encoded))
    except AdapterError as error:
        assert "f(" in str(error)
    else:
        assert len(values) == len(pairs)


@pytest.mark.parametrize(
    ("kind", "returned"),
    [
        ("uint256", b""),
        ("uint256", bytes(31)),
        ("uint8", (256).to_bytes(32, "big")),
        ("int24", (1 << 23).to_bytes(32, "big")),
        ("address", b"\x01" + bytes(31)),
        ("bool", (2).to_bytes(32, "big")),
        ("bytes4", bytes(31) + b"\x01"),
        ("bytes", (32).to_bytes(32, "big") + (33).to_bytes(32, "big") + bytes(32)),
        ("bytes", (2**255).to_bytes(32, "big") + bytes(32)),
        ("string", (32).to_bytes(32, "big") + (1).to_bytes(32, "big") + b"\xff" + bytes(31)),
        ("uint256[]", (32).to_bytes(32, "big") + (2**200).to_bytes(32, "big")),
        ("uint256[2]", bytes(63)),
        ("(uint256,bytes)", (32).to_bytes(32, "big") + bytes(32)),
    ],
)
def test_short_or_dirty_return_data_is_never_a_number(kind: str, returned: bytes) -> None:
    """Return data Solidity's decoder would reject is rejected, with the function's name in the message."""
    with pytest.raises(AdapterError, match=r"f\(.*\) returned \d+ bytes that do not decode"):
        function_of(kind).decode(returned)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("uint256", -1),
        ("uint256", 2**256),
        ("uint8", 256),
        ("uint256", 1.0),
        ("uint256", "1"),
        ("int24", 1 << 23),
        ("address", ALICE_TEXT),
        ("address", bytes(19)),
        ("bool", 1),
        ("bytes32", bytes(31)),
        ("bytes", "0x00"),
        ("string", b"text"),
        ("uint256[2]", [1]),
        ("uint256[]", 1),
        ("(uint256,bool)", (1,)),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kind: str, value: Any) -> None:
    """Nothing is truncated, padded or wrapped into an argument."""
    with pytest.raises(AdapterError, match=r"Arguments do not fit f\("):
        function_of(kind).encode(value)


def test_the_number_of_arguments_must_be_right() -> None:
    """Too few or too many arguments are refused."""
    for args in [(), (1, 2)]:
        with pytest.raises(AdapterError):
            function_of("uint256").encode(*args)


def test_known_signatures_have_their_known_selectors() -> None:
    """Selectors and topics are those everyone knows."""
    erc20 = abi.load("Erc20")
    assert erc20.function("transfer").selector.hex() == "a9059cbb"
    assert (
        erc20.function("balanceOf").call(ALICE, ALICE).data.hex()
        == "70a08231" + bytes(12).hex() + ALICE.hex()
    )
    assert abi.load("Multicall3").function("aggregate3").selector.hex() == "82ad56cb"
    assert abi.load("Safe").function("execTransaction").selector.hex() == "6a761202"
    assert abi.load("ChainlinkFeed").function("latestRoundData").selector.hex() == "feaf968c"


def test_one_demands_exactly_one_output() -> None:
    """`one` is for functions with one output; any other number is an error, not the first of several."""
    assert function_of("uint256").one((7).to_bytes(32, "big")) == 7
    with pytest.raises(AdapterError, match="2 outputs"):
        function_of("uint256", "uint256").one(bytes(64))


def test_calldata_of_another_function_is_not_decoded() -> None:
    """`decode_input` checks the selector."""
    with pytest.raises(AdapterError, match="is not a call of"):
        function_of("uint256").decode_input(bytes(36))


TRANSFER = {
    "type": "event",
    "name": "Moved",
    "inputs": [
        {"name": "amount", "type": "uint256", "indexed": False},
        {"name": "from", "type": "address", "indexed": True},
        {"name": "memo", "type": "string", "indexed": True},
        {"name": "", "type": "bool", "indexed": False},
    ],
}


def test_events_decode_by_name_in_declared_order() -> None:
    """Indexed and plain values come out in the order of the declaration; an indexed string as its hash."""
    event = Abi.from_json([TRANSFER]).event("Moved")
    assert event.topic == abi.keccak(b"Moved(uint256,address,string,bool)")
    data = (5).to_bytes(32, "big") + (1).to_bytes(32, "big")
    decoded = event.decode(log_of(data, event.topic, bytes(12) + ALICE, abi.keccak(b"memo")))
    assert list(decoded.items()) == [
        ("amount", 5),
        ("from", ALICE),
        ("memo", abi.keccak(b"memo")),
        ("3", True),
    ]


def test_another_events_log_is_an_adapter_error() -> None:
    """A wrong topic, a missing topic, a dirty topic and short data are all refused."""
    event = Abi.from_json([TRANSFER]).event("Moved")
    data = bytes(64)
    sender, memo = bytes(12) + ALICE, bytes(32)
    for log in [
        log_of(data),
        log_of(data, bytes(32), sender, memo),
        log_of(data, event.topic, sender),
        log_of(data, event.topic, b"\x01" * 32, memo),
        log_of(data[:-1], event.topic, sender, memo),
    ]:
        with pytest.raises(AdapterError, match=r"Moved\("):
            event.decode(log)


def test_overloads_need_their_whole_signature() -> None:
    """A name that stands for two functions is refused; the signature chooses."""
    overloaded = Abi.from_json(
        [
            {"type": "function", "name": "f", "inputs": [spelled("uint256")], "outputs": []},
            {"type": "function", "name": "f", "inputs": [spelled("(address,bytes[])[2]")], "outputs": []},
        ]
    )
    with pytest.raises(AdapterError, match="2 functions f"):
        overloaded.function("f")
    with pytest.raises(AdapterError, match="no functions g"):
        overloaded.function("g")
    chosen = overloaded.function("f((address,bytes[])[2])")
    assert chosen.selector == abi.keccak(b"f((address,bytes[])[2])")[:4]


def test_errors_are_put_in_words() -> None:
    """Named errors, the two built-in ones and nothing else; unreadable data stays unexplained."""
    own = Abi.from_json(
        [
            {
                "type": "error",
                "name": "Late",
                "inputs": [spelled("address"), spelled("uint256"), spelled("bytes8")],
            }
        ]
    )
    late = abi.keccak(b"Late(address,uint256,bytes8)")[:4]
    arguments = bytes(12) + ALICE + (9).to_bytes(32, "big") + b"incident" + bytes(24)
    assert own.error(late + arguments) == f"Late({ALICE_TEXT}, 9, 0x{b'incident'.hex()})"
    assert own.error(late + arguments, lambda carried: carried.decode()) == f"Late({ALICE_TEXT}, 9, incident)"
    assert own.error(late + arguments[:-1]) is None
    assert own.error(bytes.fromhex("4e487b71") + (17).to_bytes(32, "big")) == "Panic(0x11)"
    assert own.error(bytes.fromhex("08c379a0") + eth_abi.encode(["string"], ["no"])) == "Error(no)"
    assert own.error(b"") is None
    assert own.error(b"\x01\x02\x03\x04") is None


def test_constructor_arguments_are_encoded_without_a_selector() -> None:
    """Constructor arguments are appended as they are; a constructor that is not declared takes none."""
    made = Abi.from_json([{"type": "constructor", "inputs": [spelled("address"), spelled("uint256[]")]}])
    assert made.constructor(ALICE, [1, 2]) == eth_abi.encode(["address", "uint256[]"], [ALICE, [1, 2]])
    assert Abi.from_json([]).constructor() == b""
    with pytest.raises(AdapterError):
        Abi.from_json([]).constructor(1)


@given(st.binary(min_size=20, max_size=20))
def test_addresses_survive_their_checksummed_spelling(raw: bytes) -> None:
    """`checksum` is EIP-55's and `address` takes it back, in any of the unmixed cases too."""
    text = abi.checksum(raw)
    assert text == to_checksum_address(raw)
    assert abi.address(text) == abi.address(text.lower()) == abi.address("0x" + text[2:].upper()) == raw


@pytest.mark.parametrize(
    "text",
    ["", "0x", ALICE_TEXT[:-1], ALICE_TEXT[2:], ALICE_TEXT + "00", "0x" + "g" * 40, ALICE_TEXT.swapcase()],
)
def test_a_mistyped_address_is_refused(text: str) -> None:
    """What is not an address, or carries a wrong checksum, is a ValueError, as configuration models expect."""
    with pytest.raises(ValueError, match=r"address|checksum"):
        abi.address(text.replace("0X", "0x"))


def test_a_missing_or_broken_file_is_a_config_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every failure to load an interface names the file; both published forms are read."""
    monkeypatch.setattr(abi, "_folder", lambda: tmp_path)
    (tmp_path / "Bare.json").write_text(json.dumps([TRANSFER]))
    (tmp_path / "Wrapped.json").write_text(json.dumps({"abi": [TRANSFER], "bytecode": "0x"}))
    abi.load.cache_clear()
    try:
        assert abi.load("Bare").event("Moved").topic == abi.load("Wrapped").event("Moved").topic
        for name, content in [
            ("Cut", "["),
            ("Odd", "{}"),
            ("Number", "7"),
            ("Strange", '[{"type": "error"}]'),
        ]:
            (tmp_path / f"{name}.json").write_text(content)
            with pytest.raises(ConfigError, match=f"{name}.json"):
                abi.load(name)
        with pytest.raises(ConfigError, match=r"Missing\.json is missing"):
            abi.load("Missing")
    finally:
        abi.load.cache_clear()
