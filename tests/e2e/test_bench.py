from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from keeper.lab import bench
from keeper.lab.bench.report import write_plan

VARIANTS = {"keeper", "keeper_inside", "floor", "naive", "multicall"}


@pytest.mark.slow
async def test_reaction_is_measured_and_stated(capsys: pytest.CaptureFixture[str]) -> None:
    """Every variant has ordered figures in milliseconds, ratios are those of the medians, and the table shows them."""
    document: dict[str, Any] = await bench.reaction(heads=2, sizes=(60, 120))
    assert (document["schema"], document["name"], document["heads"]) == (1, "reaction", 2)
    assert set(document["machine"]) == {"cpu", "cores", "python", "anvil", "load"}
    assert document["versions"]["web3"]
    assert list(document["figures"]) == ["60", "120"]
    for figures in document["figures"].values():
        assert set(figures) == VARIANTS
        for figure in figures.values():
            assert figure["unit"] == "ms"
            assert 0 < figure["p50"] <= figure["p90"] <= figure["p99"]
        # nothing beats the least there is to do, and no sweep beats the keeper
        assert figures["floor"]["p50"] < figures["keeper"]["p50"] < figures["multicall"]["p50"]
        assert figures["keeper_inside"]["p50"] <= figures["keeper"]["p50"]
    assert document["figures"]["120"]["naive"]["note"] == "sampled and scaled"
    assert "note" not in document["figures"]["60"]["naive"]
    largest = document["figures"]["120"]
    assert document["ratios"] == {
        "floor": pytest.approx(largest["keeper"]["p50"] / largest["floor"]["p50"], rel=0.05),
        "naive": pytest.approx(largest["naive"]["p50"] / largest["keeper"]["p50"], rel=0.05),
        "multicall": pytest.approx(largest["multicall"]["p50"] / largest["keeper"]["p50"], rel=0.05),
    }
    bench.render(document)
    shown = capsys.readouterr().out
    assert f"{largest['naive']['p50']:,.0f}" in shown and "what was sampled is scaled" in shown


@pytest.mark.slow
async def test_a_pause_is_measured_and_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are ordered, nothing was liquidated after a pause, and the page's other part is left as it is."""
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text("# Benchmarks\n\nkept\n\n## How soon a pause stops it\n\nold\n")
    monkeypatch.setattr("keeper.lab.bench.report.share_dir", lambda: tmp_path)
    document: dict[str, Any] = await bench.pause(trials=2, accounts=60, write=True)
    assert (document["schema"], document["name"], document["trials"]) == (1, "pause", 2)
    assert document["figures"].pop("executed_after_pause") == 0
    assert set(document["figures"]) == {"gate_pending_ms", "gate_head_ms", "cancel_ms"}
    for name, figure in document["figures"].items():
        assert figure["p50"] <= figure["p90"] <= figure["p99"] and figure["unit"] == "ms"
        if name != "gate_head_ms":  # of the head the keeper may hear before the bench does
            assert figure["p50"] > 0
    document["figures"]["executed_after_pause"] = 7
    bench.render_pause(document)
    assert "after it: 7" in capsys.readouterr().out
    written = page.read_text()
    assert written.startswith("# Benchmarks\n\nkept\n\n## How soon") and "old" not in written


@pytest.mark.slow
async def test_plans_are_measured_and_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans net nearly what brute force finds or more, in less time; the figures are those that are promised, and one
    that does not hold is said. The other parts of the page are left as they are.
    """
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text("# Benchmarks\n\nkept\n\n## How soon a pause stops it\n\nkept too\n")
    monkeypatch.setattr("keeper.lab.bench.report.share_dir", lambda: tmp_path)
    monkeypatch.setattr("keeper.lab.brute_force.AMOUNTS", 20)
    monkeypatch.setattr(import_module("keeper.lab.bench.plan"), "LEAST", 7.0)
    document: dict[str, Any] = await bench.plan(cases=1, write=True)
    assert (document["schema"], document["name"], document["cases"]) == (1, "plan", 6)
    figures = document["figures"]
    assert figures["vs_brute_force_worst"] >= 0.999
    gains = [figures[f"gain_{depth}_median"] for depth in ("deep", "medium", "thin")]
    assert all(gain is None or gain >= 0 for gain in gains) and any(gain is not None for gain in gains)
    assert 0 < figures["plan_ms"]["p50"] <= figures["plan_ms"]["p99"] and figures["plans_per_second"] > 0
    assert document["ratios"]["brute_force"] > 1
    assert not document["ok"] and len(document["failures"]) == 1
    bench.render_plan(document)
    assert "FAILED: a plan nets 1" in capsys.readouterr().out
    written = page.read_text()
    assert written.startswith(
        "# Benchmarks\n\nkept\n\n## How soon a pause stops it\n\nkept too\n\n## How good"
    )
    write_plan(document | {"planned": 77})
    assert "kept too" in page.read_text() and page.read_text().count("## How good") == 1
    assert "77 of them" in page.read_text()
