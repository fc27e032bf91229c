"""What one account is, and what the line makes of it stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from keeper import abi, auctions
from keeper.engine import Engine
from keeper.engine.head import View
from keeper.execution.flights import intent_of, keys_of
from keeper.guard import PauseState
from keeper.ledger import Ledger
from keeper.log import plain
from keeper.seams import Adapter
from keeper.store import Store
from keeper.types import Head, Health, Marks, Plan, PositionKey, Refusal, Weighed
from keeper.watch import Watch

Say = Callable[[str, str, Any], object]  # a stage, its answer and its numbers


def in_flight(store: Store) -> dict[PositionKey, dict[str, Any]]:
    """What is on its way for each position, by nonce and last transaction."""
    ledger = Ledger(store)
    flying: dict[PositionKey, dict[str, Any]] = {}
    for each in store.open_transactions():
        if each.attempts:
            last = each.attempts[-1]
            numbers = {
                "nonce": each.nonce,
                "transaction": last.hash,
                "purpose": last.purpose,
                "last_block": last.last_block,
            }
            flying |= dict.fromkeys(keys_of(each, intent_of(each, ledger)), numbers)
    return flying


async def stages_of(
    engine: Engine, watch: Watch, key: PositionKey, view: View, head: Head, flying: dict[str, Any] | None
) -> dict[str, Any]:
    """Every stage's answer for one position, up to the first that leaves it alone; `flying` is what is on its way."""
    adapter = watch.adapters[key.protocol]
    stages: list[dict[str, Any]] = []
    answer: dict[str, Any] = {"protocol": key.protocol, "market": key.market, "stages": stages}

    def say(stage: str, answered: str, numbers: Any = None) -> dict[str, Any]:
        stages.append({"stage": stage, "answer": answered, "numbers": plain(numbers or {})})
        return answer

    marks = view.marks[adapter.name]
    if isinstance(marks, Refusal):
        return say(marks.stage, marks.reason, marks.numbers)
    if key not in watch.book:
        return say("discover", "no_debt", {"account": key.account})
    health = adapter.assess(watch.book.position(key), marks)
    if isinstance(health, Refusal):
        return say(health.stage, health.reason, health.numbers)
    answer["position"] = position_of(adapter, watch, health, marks)
    selected = key in set(watch.book.candidates(marks))
    say("book", "selected" if selected else "not_selected")
    say(
        "assess",
        "liquidatable" if health.liquidatable else "healthy",
        {"health_factor_wad": health.health_factor_wad} | _uncovered(health, engine.budget_usd_e8(view)),
    )
    if not health.liquidatable:
        return answer
    if flying is not None:
        return say("send", "in_flight", flying)
    for option in adapter.options(watch.book.position(key), health, marks):
        if isinstance(option, Refusal):
            say("options", option.reason, option.numbers)
        else:
            pair = {"repay": option.repay_token.symbol, "seize": option.seize_token.symbol}
            calls = len(adapter.liquidation_calls(option, option.max_repay_raw))
            say("options", "allowed", pair | {"max_repay_raw": option.max_repay_raw, "calls": calls})
    await _weigh(engine, health, view, head, say)
    return answer


async def _weigh(engine: Engine, health: Health, view: View, head: Head, say: Say) -> None:
    """The stages from the standing orders on."""
    standing = engine.standing(view, head, health.key.protocol)
    if standing is not None:
        say(standing.stage, standing.reason, standing.numbers)
    stage = engine.stage(health.key.protocol)
    if stage is not None:
        say("resume", "canary" if stage.canary else "ramp", {"resume_cap_usd_e8": stage.cap_usd_e8})
    plan = await engine.ask(engine.plan(health, view, head, thorough=True), head)
    if isinstance(plan, Refusal):
        say(plan.stage, plan.reason, plan.numbers)
        return
    for way in plan.weighed:
        say("weigh", *_way(way, plan))
    profit = {"expected_profit_raw": plan.expected_profit_raw, "min_profit_raw": plan.min_profit_raw}
    costs = {"gas_estimate": plan.gas_estimate, "gas_cost_wei": plan.gas_cost_wei}
    data = {"data_fee_wei": plan.data_fee_wei, "data_gas": plan.data_gas}
    say("plan", "planned", profit | {"gas_cost_raw": plan.gas_cost_raw} | costs | data)
    if not isinstance(view.pause, PauseState):
        return
    [trial] = await engine.attempt([plan], view.pause, head)
    if isinstance(trial, Refusal):
        blamed = await engine.blame(plan, trial, head)
        say(blamed.stage, blamed.reason, blamed.numbers)
        return
    say("trial", "pays", engine.describe(plan, trial, view))
    clearance = engine.clear(plan, trial, view, head)
    if isinstance(clearance, Refusal):
        say(clearance.stage, clearance.reason, clearance.numbers)
        return
    say("clear", "would_send", None)


def _way(way: Weighed, plan: Plan) -> tuple[str, dict[str, Any]]:
    """What became of a way, and its figures: `behind` is by how much less it nets than the one that was chosen."""
    chosen, token = plan.weighed[0], way.profit_token
    figures: dict[str, Any] = {"nets": _decimal(way.net_raw, token.decimals), "net_token": token.symbol}
    if way is not chosen and token == chosen.profit_token:
        figures["behind"] = _decimal(chosen.net_raw - way.net_raw, token.decimals)
    figures |= {"repay": way.repay_token.symbol, "seize": way.seize_token.symbol, "lender": way.lender}
    figures |= {"swaps": way.swaps, "calls": way.calls, "legs": way.legs}
    figures |= {"repay_raw": way.repay_raw, "net_raw": way.net_raw}
    pays = "within_budget" if plan.may_lose_usd_e8 else "pays"
    return "chosen" if way is chosen else way.reason or pays, figures


def position_of(adapter: Adapter, watch: Watch, health: Health, marks: Marks) -> dict[str, Any]:
    """A position as it was judged."""
    price = adapter.liquidation_price(watch.book.position(health.key), health, marks)
    return {
        "protocol": health.key.protocol,
        "market": health.key.market,
        "account": abi.checksum(health.key.account),
        "health_factor_wad": str(health.health_factor_wad) if health.health_factor_wad is not None else None,
        "collateral_usd": _decimal(health.collateral_base, health.base_decimals),
        "debt_usd": _decimal(health.debt_base, health.base_decimals),
        "liquidation_price": None if price is None else _decimal(price, health.base_decimals),
        "liquidatable": health.liquidatable,
        "bad_debt_usd": _decimal(sum(owed.usd_e8 or 0 for owed in health.bad_debt), 8),
        "bad_debt": [
            {
                "token": abi.checksum(owed.token.address),
                "symbol": owed.token.symbol,
                "decimals": owed.token.decimals,
                "raw": str(owed.raw),
            }
            for owed in health.bad_debt
        ],
    }


def auctioned_of(each: auctions.Auctioned) -> dict[str, Any]:
    """A price whose updates are auctioned."""
    return {
        "of": each.priced,
        "symbol": each.symbol,
        "source": abi.checksum(each.source),
        "feed": abi.checksum(each.feed),
        "aggregator": abi.checksum(each.aggregator),
        "version": each.version,
    }


def _uncovered(health: Health, budget_usd_e8: int | None) -> dict[str, Any]:
    """What the collateral does not cover, and what liquidating it may cost, None being nothing."""
    if not health.bad_debt:
        return {}
    usd_e8 = sum(owed.usd_e8 or 0 for owed in health.bad_debt)
    return {"bad_debt_usd_e8": usd_e8, "budget_usd_e8": budget_usd_e8}


def _decimal(raw: int, decimals: int) -> str:
    return format(Decimal(raw).scaleb(-decimals), "f")
