"""The breakers' commands: what is tripped, a person's word, and exit codes, with nothing but the record at hand."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from keeper import cli
from keeper.breakers import trips
from keeper.breakers.trips import Place, Trip, open_trips
from keeper.ledger import Ledger
from keeper.store import Store
from keeper.upgrades import Part, known_parts

ROOT = Path(__file__).resolve().parents[2]
POOL = "0x87870Bca3F3fD6335C3F4ce8392D69350B4fA4E2"
WAS, NOW = "0x" + "11" * 32, "0x" + "22" * 32
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A record with three tripped breakers and one that cleared, beside a configuration."""
    shutil.copy(ROOT / "examples" / "keeper.toml", tmp_path / "keeper.toml")
    now = {"address": POOL, "code": WAS, "runs": NOW}
    found = [
        Trip(Place(trips.REVERTS), {"reverts": 3, "limit": 3}, 7, 0),
        Trip(Place(trips.CODE, "aave", "pool"), {"was": now | {"runs": WAS}, "now": now}, 8, 0),
        Trip(Place(trips.DEVIATION, "aave", POOL), {"deviation_bps": 900}, 9, 0),
        Trip(Place(trips.LOSS), {"loss_usd_e8": 1}, 9, 0),
    ]
    with Store.open_file(tmp_path / "keeper.db", chain_id=1) as store:
        for trip in found:
            Ledger(store).book("tripped", None, trip.place.protocol, None, trip.body(), 1_700_000_000)
        body = {"breaker": trips.LOSS, "subject": "", "by": "itself"}
        Ledger(store).book("cleared", None, "", None, body, 1_700_000_001)
    return tmp_path / "keeper.db"


@pytest.fixture
def run(record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: its exit code and what it said."""
    monkeypatch.setattr("keeper.log.configure", lambda *_: None)

    def run(*words: str) -> tuple[int, str, str]:
        config = str(record.with_name("keeper.toml"))
        monkeypatch.setattr(sys, "argv", ["keeper", "breakers", *words, "--config", config])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, said.out, said.err

    return run


def test_what_is_tripped_is_listed(run: Run) -> None:
    """With numbers and rules, for programs and for people, who are also told what to type."""
    code, out, _ = run("list", "--json")
    listed = json.loads(out)["breakers"]
    assert code == 0
    assert [each["breaker"] for each in listed] == [trips.REVERTS, trips.CODE, trips.DEVIATION]
    assert listed[0]["numbers"] == {"reverts": 3, "limit": 3} and listed[0]["clears"] == "by a person"
    assert (listed[2]["protocol"], listed[2]["subject"], listed[2]["head"]) == ("aave", POOL, 9)
    code, out, _ = run("list")
    assert code == 0 and "reverts=3" in out and "clears by itself, once the venue" in out
    assert f"keeper breakers acknowledge aave {POOL} {NOW} --reason" in out


def test_a_person_lets_go(run: Run, record: Path) -> None:
    """What was cleared and acknowledged is on record with the reason, and the rest stays."""
    assert run("clear", trips.REVERTS, "--reason", "looked at it")[0] == 0
    assert run("clear", trips.DEVIATION, "--reason", "the pool was migrated")[0] == 0
    assert (
        run("acknowledge", "aave", POOL.lower(), NOW.upper().replace("X", "x"), "--reason", "read it")[0] == 0
    )
    with Store.open_file(record, read_only=True) as store:
        ledger = Ledger(store)
        assert open_trips(ledger) == {}
        assert [entry.body["reason"] for entry in ledger.entries(None, kind="cleared")[:3]] == [
            *("read it", "the pool was migrated", "looked at it")
        ]
        assert known_parts(ledger) == {Part("aave", "pool"): {"address": POOL, "code": WAS, "runs": NOW}}
        assert ledger.verify() is None
    code, out, _ = run("list")
    assert code == 0 and "nothing is tripped" in out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("clear", "reverts", "--reason", "x"), 2, "no breaker; they are loss_limit"),
        (("clear", trips.CODE, "--reason", "x"), 2, "breakers acknowledge"),
        (("clear", trips.LOSS, "--reason", "x"), 1, "not tripped"),
        (("clear", trips.REVERTS, "--reason", " "), 1, "must say why"),
        (("acknowledge", "aave", POOL, WAS, "--reason", "x"), 1, "not " + WAS),
        (("acknowledge", "global", POOL, NOW, "--reason", "x"), 1, "No change of"),
        (("acknowledge", "aave", "0x1", NOW, "--reason", "x"), 2, "not an account"),
        (("acknowledge", "aave", POOL, NOW, "--reason", ""), 1, "must say why"),
    ],
)
def test_a_slip_lets_nothing_go(run: Run, record: Path, words: tuple[str, ...], code: int, says: str) -> None:
    """One sentence, the right exit code, and everything is tripped as before."""
    ended, out, err = run(*words)
    assert (ended, out) == (code, "") and says in err and len(err.splitlines()) == 1
    with Store.open_file(record, read_only=True) as store:
        assert len(open_trips(Ledger(store))) == 3 and known_parts(Ledger(store)) == {}
