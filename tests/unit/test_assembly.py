"""What the settings name becomes parts, or one sentence about what cannot go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from keeper import assembly
from keeper.errors import ConfigError

_HEAD = f"""
[chain]
id = 31337
rpc_urls = ["http://127.0.0.1:1"]
wrapped_native = "0x{"11" * 20}"

[profit]
token = "0x{"22" * 20}"
native_usd_feed = "0x{"33" * 20}"
"""
_ONE, _OTHER = "0x" + "ab" * 20, "0x" + "cd" * 20
_SUSD = f'susd_usd_feed = "0x{"44" * 20}"'
_KINDS = {
    "aave-v3": 'pool_addresses_provider = "{}"',
    "perp-curie": 'clearing_house = "{}"',
    "reference-perp": 'exchange = "{}"',
    "synthetix-v2-perps": f'markets = ["{{}}"]\n{_SUSD}',
}


def _table(kind: str, name: str, market: str) -> str:
    return f'\n[[protocols]]\nkind = "{kind}"\nname = "{name}"\n{_KINDS[kind].format(market)}\n'


async def _refused(folder: Path, *tables: str) -> str:
    (folder / "keeper.toml").write_text(_HEAD + "".join(tables), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        async with assembly.open_parts(assembly.settings(folder / "keeper.toml")):
            raise AssertionError("it was opened")
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("kind", _KINDS)
async def test_a_market_is_listed_under_one_name(tmp_path: Path, kind: str) -> None:
    """Two tables for one market of any kind are refused with both names, however its address is written, before any
    node is asked; with another market between them too.
    """
    tables = [_table(kind, "first", _ONE), _table(kind, "between", _OTHER)]
    told = await _refused(tmp_path, *tables, _table(kind, "second", "0x" + "AB" * 20))
    assert told == f"first and second are the same market, {_ONE}; remove one of them from [[protocols]]."


async def test_a_market_in_two_lists_of_markets_is_found(tmp_path: Path) -> None:
    """Where one table lists several markets, each is held against those of all other tables."""
    several = _table("synthetix-v2-perps", "snx", f'{_OTHER}", "{_ONE}')
    told = await _refused(tmp_path, several, _table("synthetix-v2-perps", "again", _ONE))
    assert told.startswith(f"snx-abababab and again are the same market, {_ONE}")


async def test_a_list_of_markets_names_each_once(tmp_path: Path) -> None:
    """A market twice in one list has one name, which stands for one market alone."""
    told = await _refused(tmp_path, _table("synthetix-v2-perps", "snx", f'{_ONE}", "{_ONE}'))
    assert told == "More than one market is named snx-abababab; list each once, or rename a table."
