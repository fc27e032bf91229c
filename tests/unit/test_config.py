"""Settings: everything is checked, nothing is guessed, and every complaint says where and what."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from keeper import abi, config, log, signer
from keeper.config import Settings, load, write_contracts
from keeper.errors import ConfigError
from keeper.protocols.aave_v3 import AaveV3Config
from keeper.types import Address
from keeper.venues.uniswap_v3 import UniswapV3Config

ROOT = Path(__file__).resolve().parents[2]
TOKEN = Address(bytes.fromhex("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"))
KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
GOOD = f"""
[chain]
id = 31337
rpc_urls = ["http://127.0.0.1:8545"]
wrapped_native = "0x{"11" * 20}"

[profit]
token = "{abi.checksum(TOKEN)}"
native_usd_feed = "0x{"22" * 20}"

[[protocols]]
kind = "lender"
name = "aave"
pool = "0x{"33" * 20}"
"""


class _Lender(BaseModel):
    model_config = ConfigDict(frozen=True)  # open: unknown keys must fail all the same

    kind: Literal["lender"]
    name: str
    pool: Address
    from_block: int = Field(0, ge=0)
    ratio: Decimal = Decimal(1)
    eager: bool = False
    markets: tuple[Address, ...] = ()
    caps: Mapping[str, Address] = {}
    parent: Address | None = None


class _Market(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["market"]
    fee_tiers: tuple[int, ...] = (100,)


def _load(
    folder: Path, text: str = GOOD, environ: Mapping[str, str] | None = None, env_file: str = ""
) -> Settings:
    (folder / "keeper.toml").write_text(text, encoding="utf-8")
    if env_file:
        (folder / ".env").write_text(env_file, encoding="utf-8")
    return load(folder / "keeper.toml", {"lender": _Lender}, {"market": _Market}, environ or {})


def _problems(
    folder: Path, text: str = GOOD, environ: Mapping[str, str] | None = None, env_file: str = ""
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _load(folder, text, environ, env_file)
    return str(caught.value).splitlines()


def _problem(
    folder: Path, text: str = GOOD, environ: Mapping[str, str] | None = None, env_file: str = ""
) -> str:
    [only] = _problems(folder, text, environ, env_file)
    return only


@pytest.fixture(autouse=True)
def no_secrets_left() -> Any:
    """Forget what `load` registered."""
    yield
    log.secrets.clear()


# --- what is read ----------------------------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    """A minimal file gets the limits of the documented example, exactly and without floats."""
    read = _load(tmp_path)
    assert read.chain.id == 31337
    assert read.chain.rpc_urls == ("http://127.0.0.1:8545",)
    assert (read.chain.quorum, read.chain.max_requests_per_s, read.chain.max_head_age_s) == (1, 0, 26)
    assert read.profit.token == TOKEN
    assert (read.profit.min_profit_usd_e8, read.profit.max_slippage_bps) == (5 * 10**8, 100)
    assert read.limits.max_fee_wei == 200 * 10**9
    assert (read.limits.max_gas_limit, read.limits.max_gas_spend_wei_per_hour) == (10**7, 10**17)
    assert read.limits.max_loss_usd_e8_per_day == 50 * 10**8
    assert read.limits.bad_debt_budget_usd_e8_per_day == 0
    assert read.limits.max_consecutive_reverts == 3
    assert read.limits.max_repay_usd_e8 == 10**14
    assert read.limits.deny_accounts == frozenset()
    assert (read.flash.morpho, read.flash.uniswap_v3_pools) == (None, ())
    assert (read.signer.kind, read.send.route, read.venues, read.contracts) == ("env", "public", (), None)
    assert read.guard.halt_file == tmp_path / "keeper.halt"
    assert read.store.url == f"sqlite:///{tmp_path / 'keeper.db'}"
    assert read.protocols == (_Lender(kind="lender", name="aave", pool=Address(b"\x33" * 20)),)


def test_the_example_is_complete_and_loads() -> None:
    """examples/keeper.toml loads with the real adapters' models, and shows every key of every section."""
    path = ROOT / "examples" / "keeper.toml"
    read = load(path, {"aave-v3": AaveV3Config}, {"uniswap-v3": UniswapV3Config}, {})
    assert read.protocols[0].name == "aave"
    assert read.venues[0].fee_tiers == (100, 500, 3000, 10000)
    assert read.contracts is None
    shown = tomllib.loads(path.read_text())
    missing = [
        f"{section}.{key}"
        for section, keys in _all_keys().items()
        for key in keys
        if key not in shown[section]
    ]
    assert missing == []


def test_the_environment_example_names_every_key() -> None:
    """.env.example holds the secret and an override for every key, and nothing that would be refused."""
    text = (ROOT / ".env.example").read_text()
    for name in (config.PRIVATE_KEY, config.DEPLOYER_KEY, config.RELAY_KEY, *signer.SECRETS):
        assert re.search(rf"^#?{name}=$", text, re.MULTILINE)
    missing = [
        name
        for section, keys in _all_keys().items()
        for key in keys
        if not re.search(rf"^#{(name := f'KEEPER__{section}__{key}'.upper())}=", text, re.MULTILINE)
    ]
    assert missing == []


def test_the_environment_example_is_valid_uncommented(tmp_path: Path) -> None:
    """Uncommenting every line of .env.example gives a configuration that loads."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    overrides = [line.removeprefix("#") for line in lines if re.match(r"#?KEEPER_", line)]
    (tmp_path / ".env").write_text("\n".join(overrides))
    path = tmp_path / "keeper.toml"
    path.write_text("")
    read = load(path, {"aave-v3": AaveV3Config}, {"uniswap-v3": UniswapV3Config}, {})
    assert read.venues[0].fee_tiers == (100, 500, 3000, 10000)
    assert len(read.chain.rpc_urls) == 2


def test_every_key_is_described() -> None:
    """No field of the file is without a description."""
    models: list[type[BaseModel]] = [
        *config._SECTIONS.values(),
        config.Contracts,
        *signer.SIGNERS.values(),
    ]
    undescribed = [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert undescribed == []


def _all_keys() -> dict[str, list[str]]:
    sections: dict[str, type[BaseModel]] = {
        **config._SECTIONS,
        "contracts": config.Contracts,
        "signer": signer.EnvSigner,
    }
    return {section: list(model.model_fields) for section, model in sections.items()}


def test_settings_are_frozen(tmp_path: Path) -> None:
    """Nothing can be changed after reading."""
    read = _load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        read.limits.max_consecutive_reverts = 9  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        read.chain = read.chain  # type: ignore[misc]


@given(cents=st.integers(0, 10**20))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_amounts_are_exact(tmp_path: Path, cents: int) -> None:
    """Any amount with up to 8 decimals becomes exactly its integer, which a float could not hold."""
    written = f"{cents // 10**8}.{cents % 10**8:08}"
    text = GOOD + f"[limits]\nmax_repay_usd = {written}\n"
    assert _load(tmp_path, text).limits.max_repay_usd_e8 == cents


def test_adapter_models_get_typed_values(tmp_path: Path) -> None:
    """Addresses become 20 bytes wherever a model declares them; numbers, booleans and tables their exact types."""
    text = (
        GOOD
        + f"""
from_block = 7
ratio = 0.1
eager = true
markets = ["0x{"44" * 20}", "0x{"55" * 20}"]
caps = {{ a = "0x{"66" * 20}" }}
parent = "0x{"77" * 20}"
"""
    )
    [lender] = _load(tmp_path, text).protocols
    assert lender.markets == (b"\x44" * 20, b"\x55" * 20)
    assert (lender.caps, lender.parent) == ({"a": b"\x66" * 20}, b"\x77" * 20)
    assert (lender.from_block, lender.ratio, lender.eager) == (7, Decimal("0.1"), True)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record, the halt file and ipc sockets are found beside the file from any working directory."""
    text = GOOD.replace("http://127.0.0.1:8545", "./node.ipc") + '[guard]\nhalt_file = "stop/here"\n'
    monkeypatch.chdir("/")
    read = _load(tmp_path, text)
    assert read.chain.rpc_urls == (str(tmp_path / "node.ipc"),)
    assert read.guard.halt_file == tmp_path / "stop" / "here"
    assert read.store.url == f"sqlite:///{tmp_path}/keeper.db"
    text = GOOD + '[store]\nurl = "sqlite:////var/keeper.db"\n[guard]\nhalt_file = "/run/halt"\n'
    read = _load(tmp_path, text)
    assert (read.store.url, str(read.guard.halt_file)) == ("sqlite:////var/keeper.db", "/run/halt")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("id = 31337", "id = 0", "chain.id: 0 should be greater than 0"),
        ("id = 31337", 'id = "31337"', 'chain.id: "31337" is not a whole number'),
        ("id = 31337", "id = 31337.0", "chain.id: 31337.0 is not a whole number"),
        ("id = 31337", "id = true", "chain.id: true is not a whole number"),
        ("id = 31337", "", "chain.id: this key is missing; add it."),
        (
            "id = 31337",
            "id = 1\nidd = 2",
            "chain.idd: this key is unknown; correct or remove it (did you mean id?)",
        ),
        ("id = 31337", "id = 1\nquorum = 2", "chain.quorum: 2 nodes cannot agree when rpc_urls lists 1"),
        ("id = 31337", "id = 1\nmax_head_age_s = -1", "chain.max_head_age_s: -1 should be greater than 0"),
        (
            "id = 31337",
            'id = 1\nmax_head_age_s = "26 s"',
            'chain.max_head_age_s: "26 s" is not a whole number',
        ),
        ('["http://127.0.0.1:8545"]', '"http://x"', "chain.rpc_urls: the value is not a list"),
        ('["http://127.0.0.1:8545"]', "[]", "chain.rpc_urls: this list is empty"),
        ('"http://127.0.0.1:8545"', '"ftp://x"', "chain.rpc_urls: a node must be an http://"),
        ('"http://127.0.0.1:8545"', '"https://"', "chain.rpc_urls: a node must be an http://"),
        ('"http://127.0.0.1:8545"', '"localhost"', "chain.rpc_urls: a node must be a URL, or an ipc path"),
        ('["http://127.0.0.1:8545"]', '["http://x", "http://x"]', "chain.rpc_urls: a node is listed twice"),
        ("11" * 20, "11" * 19, 'chain.wrapped_native: "0x1111'),
        ("11" * 20, "00" * 20, "is the zero address"),
        (
            abi.checksum(TOKEN),
            abi.checksum(TOKEN).replace("A0b", "a0b"),
            "not an address with the right checksum",
        ),
        (
            "[profit]",
            "[profit]\nmin_profit_usd = -0.01",
            "profit.min_profit_usd: -0.01 should be greater than or",
        ),
        ("[profit]", '[profit]\nmin_profit_usd = "5"', 'profit.min_profit_usd: "5" is not a number'),
        ("[profit]", "[profit]\nmin_profit_usd = 0.000000001", "no more than 8 decimal places"),
        (
            "[profit]",
            "[profit]\nmin_profit_usd = nan",
            "profit.min_profit_usd: NaN should be a finite number",
        ),
        ("[profit]", "[profit]\nmin_profit_usd = inf", "should be a finite number"),
        ("[profit]", "[profit]\nmin_profit_usd = 1e999999", "should be less than or equal to"),
        (
            "[profit]",
            "[profit]\nmax_slippage_bps = 0.5",
            "profit.max_slippage_bps: 0.5 is not a whole number",
        ),
        ("[profit]", "[profit]\nmax_slippage_bps = 1001", "should be less than or equal to 1000"),
        (
            "[profit]",
            "[limits]\nmax_gas_limit = 1500000\n[profit]",
            "limits.max_gas_limit: 1500000 should be greater than or equal to 1600000",
        ),
        (
            "[profit]",
            "[limits]\nmax_fee_gwei = 0\n[profit]",
            "limits.max_fee_gwei: 0 should be greater than 0",
        ),
        (
            "[profit]",
            "[limits]\nmax_consecutive_reverts = 0\n[profit]",
            "limits.max_consecutive_reverts: 0 should",
        ),
        (
            "[profit]",
            '[limits]\ndeny_accounts = ["0x1"]\n[profit]',
            'limits.deny_accounts[0]: "0x1" is not an addr',
        ),
        ("[profit]", "[limits]\nmax_loss_usd = 1\n[profit]", "(did you mean max_loss_usd_per_day?)"),
        (
            "[profit]",
            "[limit]\nmax_repay_usd = 1\n[profit]",
            "limit: this key is unknown; correct or remove it (did",
        ),
        ("[profit]", 'limits = "none"\n[profit]', "chain.limits: this key is unknown"),
        (
            "[profit]",
            '[signer]\nkind = "ledger"\n[profit]',
            'signer.kind: "ledger" is not a known kind; the kinds',
        ),
        ("[profit]", '[signer]\nkind = "env"\nkey = "x"\n[profit]', "signer.key: this key is unknown"),
        (
            "[profit]",
            "[signer]\n[profit]",
            "signer.kind: this key is missing; the kinds are: aws-kms, env, keystore, web3signer.",
        ),
        (
            "[profit]",
            '[send]\nroute = "private"\n[profit]',
            'send.relays: the route "private" needs at least one',
        ),
        (
            "[profit]",
            '[send]\nroute = "pubic"\n[profit]',
            "send.route: \"pubic\" should be 'public', 'private' or",
        ),
        (
            "[profit]",
            '[send]\nroute = "bundle"\nrelays = ["wss://canary"]\n[profit]',
            "send.relays: a relay must be an http:// or https:// URL.",
        ),
        (
            "[profit]",
            '[send]\nroute = "bundle"\nrelays = ["https://r", "https://r"]\n[profit]',
            "send.relays: a relay is listed twice",
        ),
        (
            "[profit]",
            '[send]\nfallback = "public"\n[profit]',
            'send.fallback: the route "public" has no fallback',
        ),
        (
            "[profit]",
            '[send]\nroute = "private"\nrelays = ["https://r"]\nrefund_percent = 5\n[profit]',
            "send.refund_percent: only bundles are refunded",
        ),
        (
            "[profit]",
            '[send]\nroute = "bundle"\nrelays = ["https://r"]\nrefund_percent = 100\n[profit]',
            "send.refund_percent: 100 should be less than or equal to 99",
        ),
        (
            "[profit]",
            '[send]\nroute = "bundle"\nrelays = ["https://r"]\nfallback_after_blocks = 0\n[profit]',
            "send.fallback_after_blocks: 0 should be greater",
        ),
        ("[profit]", '[send]\nrelays = ["https://r"]\n[profit]', "send.relays: relays are not used"),
        (
            "[profit]",
            '[store]\nurl = "postgresql://u:canary@h/d"\n[profit]',
            "store.url: the record must be an SQLite",
        ),
        (
            "[profit]",
            '[store]\nurl = "sqlite:///:memory:"\n[profit]',
            "store.url: the record must be an SQLite file",
        ),
        ("[profit]", "[contracts]\nsafe = 5\n[profit]", "contracts.liquidator: this key is missing"),
        ("[profit]", '[contracts]\nowner = ""\n[profit]', "contracts.owner: this key is unknown"),
        (
            'kind = "lender"',
            'kind = "lendr"',
            'protocols[0].kind: "lendr" is not a known kind; the kinds are: lender.',
        ),
        ('kind = "lender"', "", "protocols[0].kind: this key is missing; the kinds are: lender."),
        ('name = "aave"', "", "protocols[0].name: this key is missing"),
        ('name = "aave"', 'name = "Aave"', 'protocols[0].name: "Aave" is not a usable name'),
        ('name = "aave"', 'name = "-a"', 'protocols[0].name: "-a" is not a usable name'),
        ('name = "aave"', 'name = "a\\n"', "is not a usable name"),
        ('name = "aave"', 'name = "global"', 'protocols[0].name: "global" is the pause scope of everything'),
        ('name = "aave"', f'name = "{"a" * 32}"', "is not a usable name"),
        (
            'name = "aave"',
            'name = "aave"\nfrom_block = -1',
            "protocols[0].from_block: -1 should be greater than or",
        ),
        ('name = "aave"', 'name = "aave"\nfrom_blok = 1', "protocols[0].from_blok: this key is unknown"),
        ('name = "aave"', 'name = "aave"\neager = 1', "protocols[0].eager: 1 is neither true nor false"),
        ('name = "aave"', 'name = "aave"\nratio = "1"', 'protocols[0].ratio: "1" is not a number'),
        ('name = "aave"', 'name = "aave"\nmarkets = [5]', "protocols[0].markets[0]: 5 is not an address"),
        (
            'name = "aave"',
            'name = "aave"\ncaps = { a = "0x5" }',
            'protocols[0].caps.a: "0x5" is not an address',
        ),
        ("[[protocols]]", "[protocols]", "protocols: a table is not a list of tables; write [[protocols]]"),
        (
            "[[protocols]]",
            '[[venues]]\nkind = "market"\nfee_tiers = [1.5]\n[[protocols]]',
            "venues[0].fee_tiers[0]",
        ),
        ("[[protocols]]", "venues = 5\n[[protocols]]", "profit.venues: this key is unknown"),
        (
            "[profit]",
            "[limits]\nmax_loss_usd_per_day = 9.99\nbad_debt_budget_usd_per_day = 10\n[profit]",
            "limits.bad_debt_budget_usd_per_day: it is above max_loss_usd_per_day (9.99)",
        ),
        ("[profit]", '[flash]\nmorpho = "0x1"\n[profit]', 'flash.morpho: "0x1" is not an address'),
        (
            "[profit]",
            f'[flash]\nuniswap_v3_pools = ["{"0x" + "44" * 20}", "{"0x" + "44" * 20}"]\n[profit]',
            "flash.uniswap_v3_pools: a pool is listed twice",
        ),
        (
            "[profit]",
            f'[profit]\nkeep = ["{"0x" + "44" * 20}", "{"0x" + "44" * 20}"]',
            "profit.keep: a token is listed twice",
        ),
        (
            "[profit]",
            f'[profit]\nkeep = ["{abi.checksum(TOKEN)}"]',
            "or is profit.token, which is kept anyway",
        ),
        ("[chain]", '[chain]\ndata_fee = "optimism"', "chain.data_fee"),
        ("[profit]", "[send]\npriority_share_bps = 10001\n[profit]", "send.priority_share_bps"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    """Each mistake gives a sentence with the file, the full key path and what to do, and no secret."""
    assert old in GOOD
    problems = _problems(tmp_path, GOOD.replace(old, new, 1))
    assert any(complaint in problem for problem in problems), problems
    for problem in problems:
        assert problem.startswith(f"{tmp_path / 'keeper.toml'}: ")
        assert problem.endswith(".")
        assert "canary" not in problem


def test_a_usable_name_fills_a_scope_at_most(tmp_path: Path) -> None:
    """Names of 1 and of 31 characters are accepted; both fit PauseGuard's 32 bytes."""
    for name in ("a", "0" * 31, "aave-v3-prime"):
        assert _load(tmp_path, GOOD.replace('"aave"', f'"{name}"')).protocols[0].name == name


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Several mistakes are one line each, and one mistake is not told twice."""
    text = GOOD.replace("31337", '"x"').replace('name = "aave"', 'name = "A"\nfrom_block = "x"')
    keys = [problem.split(": ")[1] for problem in _problems(tmp_path, text)]
    assert keys == ["chain.id", "protocols[0].name", "protocols[0].from_block"]


def test_a_name_is_used_once(tmp_path: Path) -> None:
    """Two protocols of one name would share a pause and a record: refused at the second."""
    second = GOOD[GOOD.index("[[protocols]]") :]
    assert 'protocols[1].name: "aave" is used by another protocol' in _problem(tmp_path, GOOD + second)
    both = _load(tmp_path, GOOD + second.replace('"aave"', '"other"'))
    assert [protocol.name for protocol in both.protocols] == ["aave", "other"]


@pytest.mark.parametrize("section", ["chain", "profit"])
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    """A section without defaults must be there."""
    text = re.sub(rf"\[{section}\].*?(?=\n\[)", "", GOOD, flags=re.DOTALL)
    assert _problem(tmp_path, text).endswith(f"{section}: this section is missing; add [{section}].")


def test_there_must_be_a_protocol(tmp_path: Path) -> None:
    """A file that watches nothing is a mistake."""
    text = GOOD[: GOOD.index("[[protocols]]")]
    assert "protocols: there is no protocol to watch" in _problem(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            None,
            "There is no configuration at .*; write one with `keeper init`, or name another with --config",
        ),
        (b"[chain\n", r"is not valid TOML \(.*line 1.*\)"),
        (b"a = 1\na = 2\n", "is not valid TOML"),
        (b"a = \xff\n", "is not UTF-8"),
        (b"a = " + b"9" * 5000, "out of all bounds"),
    ],
)
def test_an_unreadable_file_is_a_sentence(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    """A missing or broken file says what it is and what to do."""
    path = tmp_path / "keeper.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(path, {}, {}, {})
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


# --- the environment -------------------------------------------------------------------------------------------------


def test_every_value_can_be_overridden(tmp_path: Path) -> None:
    """Numbers, text, addresses, booleans, lists and places in lists are read as their key's type."""
    environ = {
        "KEEPER__CHAIN__ID": " 10 ",
        "KEEPER__CHAIN__RPC_URLS": "http://a, wss://b/k",
        "KEEPER__PROFIT__MIN_PROFIT_USD": "0.00000001",
        "KEEPER__LIMITS__DENY_ACCOUNTS": f'["0x{"44" * 20}"]',
        "KEEPER__SEND__RELAYS": "",
        "KEEPER__PROTOCOLS__0__NAME": "7",
        "KEEPER__PROTOCOLS__0__EAGER": "true",
        "KEEPER__PROTOCOLS__0__POOL": f"0x{'88' * 20}",
        "KEEPER__PROTOCOLS__0__MARKETS__0": f"0x{'99' * 20}",
        "KEEPER__PROTOCOLS__1__KIND": "lender",
        "KEEPER__PROTOCOLS__1__NAME": "second",
        "KEEPER__PROTOCOLS__1__POOL": f"0x{'aa' * 20}",
        "KEEPER__VENUES__0__KIND": "market",
        "KEEPER__VENUES__0__FEE_TIERS": "100,500",
        "UNRELATED": "x",
    }
    read = _load(tmp_path, environ=environ)
    assert (read.chain.id, read.chain.rpc_urls) == (10, ("http://a", "wss://b/k"))
    assert read.profit.min_profit_usd_e8 == 1
    assert read.limits.deny_accounts == {b"\x44" * 20}
    assert read.send.relays == ()
    first, second = read.protocols
    assert (first.name, first.eager, first.pool, first.markets) == ("7", True, b"\x88" * 20, (b"\x99" * 20,))
    assert (second.name, second.pool) == ("second", b"\xaa" * 20)
    assert [venue.fee_tiers for venue in read.venues] == [(100, 500)]


def test_ten_tables_come_in_order(tmp_path: Path) -> None:
    """Indices are numbers: 10 comes after 9, not after 1."""
    environ = {f"KEEPER__VENUES__{index}__KIND": "market" for index in range(11)}
    environ |= {f"KEEPER__VENUES__{index}__FEE_TIERS": str(index + 1) for index in range(11)}
    assert [venue.fee_tiers for venue in _load(tmp_path, environ=environ).venues] == [
        (index + 1,) for index in range(11)
    ]


def test_the_environment_wins_over_the_env_file_over_the_file(tmp_path: Path) -> None:
    """Precedence is environment, .env, keeper.toml, value by value."""
    env_file = "KEEPER__CHAIN__ID=2\nKEEPER__CHAIN__MAX_HEAD_AGE_S=7\n"
    read = _load(tmp_path, environ={"KEEPER__CHAIN__ID": "3"}, env_file=env_file)
    assert (read.chain.id, read.chain.max_head_age_s, read.chain.quorum) == (3, 7, 1)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("KEEPER__CHAIN__ID", "-5", "chain.id: -5 should be greater than 0"),
        ("KEEPER__CHAIN__ID", "0x1", 'chain.id: "0x1" is not a whole number'),
        ("KEEPER__CHAIN__ID", "", 'chain.id: "" is not a whole number'),
        ("KEEPER__CHAIN__IDD", "5", "chain.idd: this key is unknown"),
        (
            "KEEPER__CHAINS__ID",
            "5",
            "chains: this key is unknown; correct or remove it (did you mean chain?)",
        ),
        ("KEEPER__CHAIN", "5", 'chain: "5" is not a table'),
        ("KEEPER__PROFIT__MIN_PROFIT_USD", "five", 'profit.min_profit_usd: "five" is not a number'),
        ("KEEPER__PROFIT__MIN_PROFIT_USD", "NaN", "should be a finite number"),
        ("KEEPER__LIMITS__DENY_ACCOUNTS", "[oops", "is not a list; write it as JSON or separate"),
        ("KEEPER__LIMITS__DENY_ACCOUNTS", "0x1,0x2", 'limits.deny_accounts[0]: "0x1" is not an address'),
        ("KEEPER__PROTOCOLS__5__NAME", "x", "protocols[5].name: there is no such place"),
        ("KEEPER__PROTOCOLS__X__NAME", "x", "protocols.x.name: there is no such place"),
        ("KEEPER__CHAIN__ID__X", "x", "chain.id.x: there is no such place"),
        ("KEEPER____ID", "x", "there is no such place"),
        ("KEEPER__PROTOCOLS__0__EAGER", "yes", 'protocols[0].eager: "yes" is neither true nor false'),
        (
            "KEEPER__SIGNER__KIND",
            "gcp",
            'signer.kind: "gcp" is not a known kind; the kinds are: aws-kms, env, keystore, web3signer.',
        ),
    ],
)
def test_a_wrong_override_names_its_variable(tmp_path: Path, name: str, value: str, complaint: str) -> None:
    """A mistake in the environment or in .env is told with the variable and where it stands, not with the file."""
    problems = _problems(tmp_path, environ={name: value})
    assert any(problem.startswith(f"{name} (environment): ") and complaint in problem for problem in problems)
    problems = _problems(tmp_path, env_file=f"{name}='{value}'\n")
    assert any(
        problem.startswith(f"{name} ({tmp_path / '.env'}): ") and complaint in problem for problem in problems
    )


def test_a_broken_env_file_is_told_without_its_content(tmp_path: Path) -> None:
    """A line that is no assignment, and a KEEPER_ name nobody knows, are mistakes; neither line is quoted."""
    assert (
        _problem(tmp_path, env_file="A=1\ncanary line\n")
        == f"{tmp_path / '.env'}: line 2 is not NAME=value; correct it."
    )
    assert "line 1 is not" in _problem(tmp_path, env_file="canary\n")
    told = _problem(tmp_path, env_file="KEEPER_PRIVATEKEY=canary\nOTHER=1\n")
    assert "KEEPER_PRIVATEKEY is not a setting of the keeper" in told
    assert "did you mean KEEPER_PRIVATE_KEY?" in told
    assert "canary" not in told


def test_values_of_the_env_file_are_taken_literally(tmp_path: Path) -> None:
    """A dollar in a value is a dollar: nothing is interpolated."""
    read = _load(tmp_path, env_file="X=1\nKEEPER__CHAIN__RPC_URLS='http://h/$X${X}'\n")
    assert read.chain.rpc_urls == ("http://h/$X${X}",)


# --- secrets ---------------------------------------------------------------------------------------------------------


SECRETS = {
    config.PRIVATE_KEY: Settings.private_key,
    config.DEPLOYER_KEY: Settings.deployer_key,
    config.RELAY_KEY: Settings.relay_key,
}


@pytest.mark.parametrize("other", [config.PRIVATE_KEY, config.DEPLOYER_KEY])
def test_the_relay_key_is_no_other_key(tmp_path: Path, other: str) -> None:
    """Relays must not learn to know the operator, nor may a key without worth be one with: however it is written."""
    with pytest.raises(ConfigError, match=r"KEEPER_RELAY_KEY.*a key of their own") as caught:
        _load(tmp_path, GOOD, environ={config.RELAY_KEY: "0x" + KEY.upper(), other: KEY})
    assert KEY not in str(caught.value)


def test_relays_are_hidden_and_need_their_key(tmp_path: Path) -> None:
    """A relay's URL may carry a key: neither repr nor a log shows it; without the relay key there is one sentence."""
    send = '[send]\nroute = "bundle"\nrelays = ["https://relay.example/canary-api-key-0456"]\n[profit]'
    read = _load(tmp_path, GOOD.replace("[profit]", send))
    assert "canary-" not in repr(read) + str(read.send)
    assert "canary" not in log.secrets.scrub(f"POST {read.send.relays[0]}")
    with pytest.raises(ConfigError, match="KEEPER_RELAY_KEY"):
        read.relay_key()


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("where", ["environ", "env_file"])
def test_a_private_key_is_read_and_hidden(tmp_path: Path, where: str, name: str) -> None:
    """A key is given out only by its method; neither repr nor a dump nor a log shows it or a URL's key."""
    given_key: dict[str, Any] = (
        {"environ": {name: "0x" + KEY}} if where == "environ" else {"env_file": f"{name}=0x{KEY}\n"}
    )
    text = GOOD.replace("http://127.0.0.1:8545", "https://node.example/v2/canary-api-key-0123")
    read = _load(tmp_path, text, **given_key)
    assert SECRETS[name](read) == "0x" + KEY
    shown = repr(read) + str(read) + f"{read.chain!r}{read.store!r}" + str(read.model_dump(exclude={"chain"}))
    assert KEY not in shown
    assert "canary-" not in shown
    assert log.secrets.scrub(f"{KEY} canary-api-key-0123") == "[secret] [secret]"


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_key_is_told_only_where_it_is_needed(tmp_path: Path, name: str) -> None:
    """Settings load without a key, also when .env has an empty one; asking for it says where to put it."""
    for env_file in ("", f"{name}=\n"):
        read = _load(tmp_path, env_file=env_file)
        with pytest.raises(ConfigError, match=rf"{name} is not set; put it in .*\.env"):
            SECRETS[name](read)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("key", ["0x1234", KEY[:-1], KEY + "0", KEY[:-1] + "g", "0x" + KEY + " x"])
def test_a_wrong_key_is_refused_without_being_shown(tmp_path: Path, key: str, name: str) -> None:
    """What is not 32 bytes of hex is refused; the message names the variable and its place, never the value."""
    told = _problem(tmp_path, environ={name: key})
    assert told == f"environment: {name}: this secret is not a private key; it must be 32 bytes in hex."


def test_urls_are_never_quoted(tmp_path: Path) -> None:
    """A mistake in a list of nodes or in the store's URL does not show the URL."""
    text = GOOD.replace('["http://127.0.0.1:8545"]', '["canary://u:canary@h/canary", "http://canary"]')
    text += '[store]\nurl = "canary://u:canary@h/d"\n'
    problems = _problems(tmp_path, text, environ={"KEEPER__SEND__RELAYS": "https://canary"})
    assert len(problems) == 3
    assert "canary" not in "".join(problems)


def test_a_key_in_the_file_is_not_read(tmp_path: Path) -> None:
    """Secrets do not come from keeper.toml: such a key is unknown."""
    told = _problem(tmp_path, f'KEEPER_PRIVATE_KEY = "{KEY}"\n' + GOOD)
    assert "KEEPER_PRIVATE_KEY: this key is unknown" in told
    assert KEY not in told


# --- the signer ------------------------------------------------------------------------------------------------------

KINDS = {
    "keystore": 'keystore = "operator.json"',
    "web3signer": f'url = "https://signer.example/canaryApiKey01"\naddress = "0x{"44" * 20}"',
    "aws-kms": f'key_id = "alias/k"\nregion = "eu-west-1"\naddress = "0x{"44" * 20}"',
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_signer_is_read(tmp_path: Path, kind: str) -> None:
    """Its own keys and no other's; with the bounds of the balance, which are wei and in order."""
    text = GOOD + f'[signer]\nkind = "{kind}"\n{KINDS[kind]}\n'
    assert _load(tmp_path, text).signer.kind == kind
    assert _load(tmp_path, text + "min_balance_wei = 1\nmax_balance_wei = 2\n").signer.max_balance_wei == 2
    for wrong, words in (
        ("min_balance_wei = 2\nmax_balance_wei = 2\n", "signer.max_balance_wei: it must be above"),
        ('private_key = "0x11"\n', "signer.private_key: this key is unknown"),
    ):
        assert words in _problem(tmp_path, text + wrong)
    for line in KINDS[kind].splitlines():
        assert "is missing" in _problem(tmp_path, text.replace(line + "\n", ""))


def test_a_signers_url_is_hidden(tmp_path: Path) -> None:
    """It is never quoted, and a key in it is hidden from logs; plain http reaches KMS on this machine only."""
    text = GOOD + f'[signer]\nkind = "web3signer"\n{KINDS["web3signer"]}\n'
    problem = _problem(tmp_path, text.replace("https://signer.example/", "ftp://canary/"))
    assert "signer.url: a signer must be" in problem and "canary" not in problem
    read = _load(tmp_path, text)
    assert "canaryApiKey01" not in repr(read)
    assert log.secrets.scrub("GET /canaryApiKey01/api") == "GET /[secret]/api"
    text = GOOD + f'[signer]\nkind = "aws-kms"\n{KINDS["aws-kms"]}\n'
    assert "kms.eu-west-1.amazonaws.com" in getattr(_load(tmp_path, text).signer, "url", "")
    assert _load(tmp_path, text + 'endpoint = "http://127.0.0.1:1"\n').signer.kind == "aws-kms"
    problem = _problem(tmp_path, text + 'endpoint = "http://kms.canary"\n')
    assert "signer.endpoint: the endpoint must be an https:// URL" in problem and "canary" not in problem


def test_where_a_keystores_password_comes_from(tmp_path: Path) -> None:
    """The environment, then the file that is named, then systemd's credential; wherever it is from, it is hidden."""
    text = GOOD + f'[signer]\nkind = "keystore"\n{KINDS["keystore"]}\n'
    with pytest.raises(ConfigError, match="KEEPER_KEYSTORE_PASSWORD is not set"):
        _load(tmp_path, text).signer_secret(signer.KEYSTORE_PASSWORD)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "keeper-keystore-password").write_text("from systemd\n")
    handed = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    (tmp_path / "password").write_text("from a file \n")
    named = text + 'password_file = "password"\n'
    given = {**handed, "KEEPER_KEYSTORE_PASSWORD": "from outside"}
    for written, environ, expected in (
        (text, handed, "from systemd"),
        (named, handed, "from a file "),
        (named, given, "from outside"),
    ):
        read = _load(tmp_path, written, environ)
        assert read.signer_secret(signer.KEYSTORE_PASSWORD) == expected
        assert expected not in repr(read) and log.secrets.scrub(f"<{expected}>") == "<[secret]>"
    (tmp_path / "password").unlink()
    with pytest.raises(ConfigError, match="password cannot be read from"):
        _load(tmp_path, named)


def test_credentials_of_aws_come_from_the_environment(tmp_path: Path) -> None:
    """Under the names every tool of AWS knows, also from `.env`; all of them are hidden."""
    text = GOOD + f'[signer]\nkind = "aws-kms"\n{KINDS["aws-kms"]}\n'
    read = _load(
        tmp_path, text, {"AWS_ACCESS_KEY_ID": "AKIDCANARY"}, env_file="AWS_SECRET_ACCESS_KEY=s3cr3t/canary\n"
    )
    assert read.signer_secret("AWS_ACCESS_KEY_ID") == "AKIDCANARY"
    assert read.signer_secret("AWS_SECRET_ACCESS_KEY") == "s3cr3t/canary"
    assert "canary" not in log.secrets.scrub("s3cr3t/canary s3cr3t%2Fcanary akidcanary")
    with pytest.raises(ConfigError, match="AWS_SESSION_TOKEN is not set"):
        read.signer_secret("AWS_SESSION_TOKEN")


# --- contracts -------------------------------------------------------------------------------------------------------

ADDRESSES = tuple(Address(bytes([n]) * 20) for n in (0xAB, 0xBC, 0xCD, 0xDE))
FILLED = "".join(
    f'{name} = "{abi.checksum(address)}"\n'
    for name, address in zip(("liquidator", "pause_guard", "safe", "treasury"), ADDRESSES, strict=True)
)


@pytest.mark.parametrize("placeholder", ["", "0x", "0x…", "0x" + "0" * 40])
def test_placeholders_are_no_contracts(tmp_path: Path, placeholder: str) -> None:
    """Before `keeper deploy` the section may be absent, empty or hold placeholders; what needs it says so."""
    filled = "".join(f'{name} = "{placeholder}"\n' for name in config.Contracts.model_fields)
    for section in ("", "[contracts]\n", f"[contracts]\n{filled}"):
        read = _load(tmp_path, GOOD + section)
        assert read.contracts is None
        with pytest.raises(ConfigError, match=r"\[contracts\] is not filled in; run `keeper deploy` first"):
            read.require_contracts()


def test_half_filled_contracts_are_a_mistake(tmp_path: Path) -> None:
    """Once one address is there, all must be."""
    text = GOOD + f'[contracts]\nliquidator = "0x{"ab" * 20}"\nsafe = ""\n'
    keys = [problem.split(": ")[1] for problem in _problems(tmp_path, text)]
    assert keys == ["contracts.safe", "contracts.pause_guard", "contracts.treasury"]


COMMENTED = """\
# first line\t
[chain]   # a comment with [contracts] in it
id = 1
text = \"\"\"
[contracted]
liquidator = "0x1"
\"\"\"

  [ contracts ]  # by hand
# liquidator = "commented out"
  safe   =   'old'   # the Safe
liquidator="x"

# trailing comment

[[protocols]]
safe = "mine"
liquidator = "theirs"
"""


def test_writing_contracts_changes_nothing_else(tmp_path: Path) -> None:
    """Values of [contracts] are replaced or added in place; every other byte, comment and ending stays."""
    path = tmp_path / "keeper.toml"
    path.write_bytes(COMMENTED.encode())
    write_contracts(path, *ADDRESSES)
    liquidator, pause_guard, safe, treasury = map(abi.checksum, ADDRESSES)
    assert path.read_bytes().decode() == COMMENTED.replace("'old'", f'"{safe}"').replace(
        'liquidator="x"\n',
        f'liquidator="{liquidator}"\npause_guard = "{pause_guard}"\ntreasury = "{treasury}"\n',
    )
    once = path.read_bytes()
    write_contracts(path, *ADDRESSES)
    assert path.read_bytes() == once


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (GOOD, GOOD + "\n[contracts]\n" + FILLED),
        (GOOD.rstrip("\n"), GOOD.rstrip("\n") + "\n\n[contracts]\n" + FILLED),
        ("[contracts]", "[contracts]\n" + FILLED),
        ("[contracts]\n[store]\n", "[contracts]\n" + FILLED + "[store]\n"),
        ("", "[contracts]\n" + FILLED),
        ("[store]\r\n", "[store]\r\n\r\n[contracts]\r\n" + FILLED.replace("\n", "\r\n")),
        ("[contracts]\r\n# c\r\n", "[contracts]\r\n" + FILLED.replace("\n", "\r\n") + "# c\r\n"),
        (
            '[contracts]\nsafe = ""',
            "[contracts]\n" + "".join(sorted(FILLED.splitlines(True), key="s".__ne__)),
        ),
    ],
)
def test_contracts_are_added_where_missing(tmp_path: Path, before: str, after: str) -> None:
    """A missing section goes to the end, missing keys into the section, with the file's own line endings."""
    path = tmp_path / "keeper.toml"
    path.write_bytes(before.encode())
    write_contracts(path, *ADDRESSES)
    written = path.read_bytes().decode()
    if before.endswith('""'):
        assert tomllib.loads(written)["contracts"] == tomllib.loads(FILLED)
    else:
        assert written == after


def test_written_contracts_load(tmp_path: Path) -> None:
    """What deploy writes is what the daemon reads, and the file's mode is kept."""
    path = tmp_path / "keeper.toml"
    path.write_text(GOOD)
    path.chmod(0o640)
    write_contracts(path, *ADDRESSES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["keeper.toml"]
    contracts = load(path, {"lender": _Lender}, {}, {}).require_contracts()
    assert (contracts.liquidator, contracts.pause_guard, contracts.safe, contracts.treasury) == ADDRESSES


@pytest.mark.parametrize(
    "text",
    [
        'contracts = { safe = "x" }\n',
        'contracts.safe = "x"\n',
        '[contracts]\n"safe" = "x"\n',
        "[contracts]\nsafe = 5\n",
        '[contracts]\nsafe = """\nx"""\n',
        'text = """\n[contracts]\n"""\n',
        "[contracts\n",
        "contracts = 5\n",
        "[[contracts]]\n",
    ],
)
def test_what_cannot_be_edited_is_left_alone(tmp_path: Path, text: str) -> None:
    """A section written in a way this cannot edit is refused, and the file stays as it was."""
    path = tmp_path / "keeper.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        write_contracts(path, *ADDRESSES)
    assert path.read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["keeper.toml"]
