// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {Vm} from "../Vm.sol";
import {Feed} from "../mocks/Feed.sol";
import {PerpReckoner} from "./PerpReckoner.sol";
import {PerpSetup} from "./PerpSetup.sol";

/// @notice Traders, keepers, a guardian and the market itself, in any order. Each act is weighed against a reckoning of
/// its own: who may do it, what it must leave, and in which order losses are borne.
contract PerpPlayer is PerpSetup {
    /// @dev Collateral that roundings may hide from the books for each act, in units of 1e-18.
    uint256 internal constant DUST = 1e6;

    PerpReckoner internal reckoner;
    uint256[] internal accounts; // the house first
    uint256 internal acts;
    /// @dev Who was ruined last, and where.
    uint256 internal ruined;
    uint256 internal ruinedIn;
    /// @dev Until when nobody may withdraw, by what was seen here.
    uint256 internal gate;

    /// @dev How often each thing happened, for the test that it does happen.
    uint256 internal trades;
    uint256 internal liquidations;
    uint256 internal partials;
    uint256 internal cuts;
    uint256 internal inheritances;
    uint256 internal coveredByFund;
    uint256 internal deleveragings;
    uint256 internal houseDeleveragings;
    uint256 internal winnersClosed;
    uint256 internal socialized;
    uint256 internal withdrawals;
    uint256 internal refusedByPause;

    /// @notice In the order of their declaration.
    function times() external view returns (uint256[12] memory) {
        return [
            trades,
            liquidations,
            partials,
            cuts,
            inheritances,
            coveredByFund,
            deleveragings,
            houseDeleveragings,
            winnersClosed,
            socialized,
            withdrawals,
            refusedByPause
        ];
    }

    constructor() {
        setUp();
        reckoner = new PerpReckoner(exchange);
        IPerpExchange.MarketParameters memory set = tiered();
        set.windowMultiplier = 0.02e18; // 48 ETH in a window
        set.maxFundingVelocity = 9e18;
        setMarket(ETH, set);
        vm.prank(owner);
        exchange.withdraw(HOUSE, HOUSE_MONEY - 150_000e6, owner);
        accounts.push(HOUSE);
        address[5] memory people = [alice, bob, carol, dave, alice];
        for (uint256 i; i < 5; ++i) {
            accounts.push(openAs(people[i], 10_000e6 * (i + 1), i == 4));
        }
        fundWith(500e6);
        trade(1, ETH, 45e18);
        trade(1, BTC, -0.02e18);
        trade(2, BTC, -1.5e18);
        trade(3, BTC, 2e18);
        trade(4, ETH, -150e18);
        trade(5, ETH, 250e18);
    }

    function accountOf(uint256 who) internal view returns (uint256) {
        return accounts[who % accounts.length];
    }

    /// @dev Mostly whoever was ruined last.
    function victimOf(uint256 who, uint256 market) internal view returns (uint256, uint256) {
        return who % 4 == 0 ? (accountOf(who / 4), market % 2) : (ruined, who % 4 == 1 ? market % 2 : ruinedIn);
    }

    /// @dev Not the house.
    function traderOf(uint256 who) internal view returns (uint256) {
        return accounts[1 + who % (accounts.length - 1)];
    }

    function asked(address caller, bytes memory request) internal returns (bool success) {
        ++acts;
        vm.prank(caller);
        (success,) = address(exchange).call(request);
    }

    /* WHAT TRADERS DO */

    /// @notice No position is born liquidatable, none is opened while that is paused, a frozen account does not trade.
    function doTrade(uint256 who, uint256 market, uint256 worth, bool long) external {
        uint256 account = traderOf(who);
        market %= 2;
        int256 size = int256(bound(worth, 1e15, 150_000e18)) * 1e18 / reckoner.mark(market);
        bool closes = worth % 4 == 0 && sizeOf(account, market) != 0;
        if (closes) size = -sizeOf(account, market);
        else if (!long) size = -size;
        int256 before = sizeOf(account, market);
        bool frozen = flagged(account);
        uint256 limit = size > 0 ? type(uint256).max : 0;
        bool success = asked(ownerOf(account), abi.encodeCall(IPerpExchange.trade, (account, market, size, limit)));
        if (!success) return;
        ++trades;
        bool reduces = before != 0 && (size > 0) != (before > 0) && abs(size) <= abs(before);
        assertFalse(frozen, "a frozen account traded");
        assertTrue(reduces || !exchange.openPaused(), "opened while paused");
        assertTrue(reckoner.sums(HOUSE).equity >= 0, "traded with a bankrupt house");
        PerpReckoner.Sums memory s = reckoner.sums(account);
        assertTrue(s.equity >= s.required, "born liquidatable");
        assertTrue(reduces || s.equity >= s.initial, "opened without the initial margin");
    }

    function doDeposit(uint256 who, uint256 amount) external {
        ++acts;
        pay(accountOf(who), bound(amount, 1, 5000e6));
    }

    function doGrowFund(uint256 amount) external {
        ++acts;
        fundWith(bound(amount, 1, 1000e6));
    }

    /// @notice What is withdrawn leaves the margin, and nobody withdraws while an open loss was seen or while frozen.
    function doWithdraw(uint256 who, uint256 amount) external {
        uint256 account = accountOf(who);
        bool frozen = flagged(account);
        amount = bound(amount, 1, 20_000e6);
        address to = ownerOf(account);
        if (!asked(to, abi.encodeCall(IPerpExchange.withdraw, (account, amount, to)))) return;
        ++withdrawals;
        assertFalse(frozen, "a frozen account withdrew");
        assertGe(block.timestamp, gate, "withdrawn through the gate");
        PerpReckoner.Sums memory s = reckoner.sums(account);
        assertTrue(s.equity >= s.initial && s.equity >= s.required, "withdrew its margin");
        assertTrue(collateralOf(account) >= s.initial, "withdrew what it has not realized");
    }

    /* WHAT MARKETS DO */

    function doMove(uint256 market, uint256 permille) external {
        ++acts;
        market %= 2;
        setPrice(market, reckoner.mark(market) * int256(bound(permille, 900, 1111)) / 1000);
    }

    /// @notice A price at which an account is near its margins, or below nothing; and mostly what keepers then do.
    function doRuin(uint256 who, uint256 market, uint256 how, uint256 what) external {
        ++acts;
        market %= 2;
        uint256[] memory list = exchange.holders(market, 0, 100);
        uint256 account = list.length == 0 || how / 5 % 8 == 0 ? HOUSE : list[who % list.length];
        int256 size = sizeOf(account, market);
        if (size == 0) return;
        (ruined, ruinedIn) = (account, market);
        PerpReckoner.Sums memory s = reckoner.sums(account);
        int256[5] memory targets =
            [s.required - 1, s.maintenance * 3 / 4, s.maintenance / 3, int256(0), -s.maintenance / 4];
        int256 price = reckoner.mark(market);
        int256 next = price + (targets[how % 5] - s.equity) * 1e18 / size;
        next = next < price * 2 / 3 ? price * 2 / 3 : next > price * 3 / 2 ? price * 3 / 2 : next;
        setPrice(market, next);
        if (what % 4 == 0) tryLiquidate(account, market);
        if (what % 4 == 1) tryInherit(account, market, what, traderOf(what / 4));
        if (what % 4 == 2) tryDeleverage(account, market, how / 40 % 8, what);
    }

    function setPrice(uint256 market, int256 price) internal {
        if (price < 50e18) price = 50e18;
        if (price > 1_000_000e18) price = 1_000_000e18;
        if (market == ETH) ethFeed.set(price / 1e10, block.timestamp);
        else btcFeed.set(price, block.timestamp);
    }

    function doWait(uint256 time) external {
        ++acts;
        wait_(bound(time, 1, time % 3 == 0 ? 1 days : 60));
    }

    /* WHAT OFFICERS DO */

    function doPause(uint256 which) external {
        ++acts;
        // Mostly running.
        bool open = which % 8 == 0;
        bool liquidation = which / 8 % 8 == 0;
        vm.prank(owner);
        exchange.setPauses(open, liquidation);
    }

    function doSwitchAdl(uint256 which) external {
        ++acts;
        IPerpExchange.Parameters memory set = usual();
        set.adl = which % 4 != 0;
        setParameters(set);
    }

    /* WHAT KEEPERS DO */

    /// @notice Only who is liquidatable is frozen, and whoever is healthy again is freed.
    function doFlag(uint256 who) external {
        uint256 account = accountOf(who);
        PerpReckoner.Sums memory s = reckoner.sums(account);
        bool due = !exchange.liquidationPaused() && s.equity < s.required && (s.equity < 0 || !flagged(account));
        assertTrue(asked(keeper, abi.encodeCall(IPerpExchange.flag, (account))) == due, "who is flagged");
        if (due) see(s.equity);
    }

    function doUnflag(uint256 who) external {
        uint256 account = accountOf(who);
        PerpReckoner.Sums memory s = reckoner.sums(account);
        bool due = flagged(account) && s.equity >= s.required;
        assertTrue(asked(keeper, abi.encodeCall(IPerpExchange.unflag, (account))) == due, "who is freed");
    }

    /// @notice A liquidation happens exactly when it is due, and never lowers the margin ratio unless it closes the
    /// account.
    function doLiquidate(uint256 who, uint256 market) external {
        (uint256 account, uint256 victims) = victimOf(who, market);
        tryLiquidate(account, victims);
    }

    function tryLiquidate(uint256 account, uint256 market) internal {
        PerpReckoner.Sums memory s = reckoner.sums(account);
        int256 tier = account == HOUSE ? int256(0) : reckoner.tier(account, market);
        bool due = tier != 0 && s.equity + int256(exchange.fund()) >= 0 && reckoner.capacity(market) != 0;
        if (due && exchange.liquidationPaused()) ++refusedByPause;
        due = due && !exchange.liquidationPaused();
        uint256 size = abs(sizeOf(account, market));
        bytes memory request = abi.encodeCall(IPerpExchange.liquidate, (account, market));
        assertTrue(asked(keeper, request) == due, "who is liquidated");
        if (!due) return;
        ++liquidations;
        if (sizeOf(account, market) != 0) ++partials;
        if (exchange.accountOf(account).cut) ++cuts;
        assertLe(size - abs(sizeOf(account, market)), uint256(tier), "closed more than the tier");
        weigh(account, s);
    }

    function doInherit(uint256 who, uint256 market, uint256 size, uint256 whom) external {
        (uint256 account, uint256 victims) = victimOf(who, market);
        tryInherit(account, victims, size, traderOf(whom));
    }

    function tryInherit(uint256 account, uint256 market, uint256 size, uint256 heir) internal {
        PerpReckoner.Sums memory s = reckoner.sums(account);
        int256 tier = account == HOUSE ? int256(0) : reckoner.tier(account, market);
        size = bound(size, 1, 2 * uint256(tier) + 1);
        bool frozen = flagged(heir);
        bool covered = s.equity + int256(exchange.fund()) >= 0;
        bytes memory request = abi.encodeCall(IPerpExchange.inherit, (account, market, size, heir));
        if (!asked(ownerOf(heir), request)) return;
        ++inheritances;
        assertFalse(exchange.liquidationPaused(), "inherited while paused");
        assertTrue(tier != 0 && account != heir && !frozen, "inherited what was not to be had");
        assertTrue(covered, "not the fund's to pay");
        weigh(account, s);
        PerpReckoner.Sums memory h = reckoner.sums(heir);
        assertTrue(h.equity >= h.required && h.equity >= h.initial, "an heir born liquidatable");
    }

    /// @dev After a liquidation.
    function weigh(uint256 account, PerpReckoner.Sums memory before) internal {
        see(before.equity);
        PerpReckoner.Sums memory s = reckoner.sums(account);
        if (before.equity < 0) {
            ++coveredByFund;
            assertEq(s.equity, 0, "the fund covers a bankrupt exactly");
        }
        if (s.maintenance != 0) {
            assertTrue(s.equity * before.maintenance >= before.equity * s.maintenance, "the margin ratio fell");
        }
        assertTrue(flagged(account) == (s.equity < s.required), "frozen exactly while it is liquidatable");
    }

    /// @dev Somebody acted on this equity.
    function see(int256 equity) internal {
        if (equity < 0) gate = block.timestamp + usual().gateS;
        assertEq(exchange.gatedUntil(), gate, "gate");
    }

    /* WATERFALL */

    struct Loss {
        int256 equity;
        int256 size;
        uint256 fund;
        uint256 closed; // against winners
        uint256 borne; // by winners
        uint256 laid; // on everybody
        uint256 perUnit; // of everybody
    }

    /// @notice The fund before winners before everybody; only profit is taken from winners; and everybody pays only
    /// when no winner is left or deleveraging is off.
    function doDeleverage(uint256 who, uint256 market, uint256 most, uint256 seed) external {
        (uint256 account, uint256 victims) = victimOf(who, market);
        tryDeleverage(account, victims, most % 8, seed);
    }

    function tryDeleverage(uint256 account, uint256 market, uint256 most, uint256 seed) internal {
        vm.prevrandao(bytes32(seed));
        PerpReckoner.Sums memory s = reckoner.sums(account);
        Loss memory loss = Loss(s.equity, sizeOf(account, market), exchange.fund(), 0, 0, 0, 0);
        bool due = account == HOUSE ? s.equity < s.maintenance : s.equity + int256(loss.fund) < 0;
        // A house that owes and holds nothing there can still get what the fund has.
        due = due && (loss.size != 0 || (account == HOUSE && s.equity < 0 && loss.fund != 0));
        due = due && !exchange.liquidationPaused();
        int256[] memory profits = profitsIn(market);
        vm.recordLogs();
        bool success = asked(keeper, abi.encodeCall(IPerpExchange.deleverage, (account, market, most)));
        Vm.Log[] memory logs = vm.getRecordedLogs();
        // The house may find nobody; whoever is bankrupt is always served.
        assertTrue(success ? due : !due || (account == HOUSE && s.equity >= 0), "who is deleveraged");
        if (!success) return;
        see(s.equity);
        if (account == HOUSE) ++houseDeleveragings;
        else ++deleveragings;
        read(logs, loss, profits);
        weighLoss(account, market, loss, profits);
    }

    /// @dev A unit's profit by account.
    function profitsIn(uint256 market) internal view returns (int256[] memory profits) {
        profits = new int256[](accounts.length);
        for (uint256 i; i < accounts.length; ++i) {
            profits[i] = reckoner.profit(accounts[i], market);
        }
    }

    /// @dev Adds up what the logs say, in their order. Profits are a unit's.
    function read(Vm.Log[] memory logs, Loss memory loss, int256[] memory profits) internal {
        uint256 stage;
        for (uint256 i; i < logs.length; ++i) {
            bytes32 topic = logs[i].topics[0];
            if (topic == IPerpExchange.BadDebt.selector) {
                (uint256 deficit, uint256 paid) = abi.decode(logs[i].data, (uint256, uint256));
                assertEq(stage, 0, "the fund comes first");
                assertEq(deficit, uint256(-loss.equity), "the deficit");
                assertEq(paid, deficit < loss.fund ? deficit : loss.fund, "with all it has");
            } else if (topic == IPerpExchange.Deleveraged.selector) {
                assertLe(stage, 1, "winners come second");
                assertTrue(exchange.parameters().adl, "deleveraging is off");
                stage = 1;
                (uint256 closed, uint256 borne) = abi.decode(logs[i].data, (uint256, uint256));
                int256 profit = profits[uint256(logs[i].topics[3])];
                // Per unit rounded, so a unit of 1e-18 per unit of size at most.
                assertTrue((profit + 1) * int256(closed) / 1e18 + 1 >= int256(borne), "more than its profit was taken");
                if (borne != 0) assertEq(exchange.fund(), 0, "winners pay while the fund has something");
                loss.closed += closed;
                loss.borne += borne;
                ++winnersClosed;
            } else if (topic == IPerpExchange.Socialized.selector) {
                assertLe(stage, 1, "everybody comes last, once");
                assertEq(exchange.fund(), 0, "everybody pays while the fund has something");
                stage = 2;
                (loss.laid, loss.perUnit) = abi.decode(logs[i].data, (uint256, uint256));
                ++socialized;
            }
        }
    }

    function weighLoss(uint256 account, uint256 market, Loss memory loss, int256[] memory profits) internal view {
        if (loss.laid != 0 && exchange.parameters().adl) assertNoWinner(account, market, loss, profits);
        uint256 paid = loss.equity < 0 ? loss.fund - exchange.fund() : 0;
        assertEq(equityOf(account), loss.equity + int256(paid + loss.borne + loss.laid), "the books of the loss");
        if (account == HOUSE) return;
        assertTrue(equityOf(account) <= 0, "nobody gains by being bankrupt");
        bool whole = sizeOf(account, market) == 0;
        assertTrue(whole || loss.laid == 0, "who is left open has nothing laid on others");
        if (whole && exchange.accountOf(account).markets == 0) assertEq(equityOf(account), 0, "nothing is left open");
    }

    /// @dev Everybody left on the other side but the frozen had gained too little, or had too little.
    function assertNoWinner(uint256 account, uint256 market, Loss memory loss, int256[] memory profits)
        internal
        view
    {
        int256 needed = int256(loss.laid * 1e18 / (abs(loss.size) - loss.closed));
        for (uint256 i = 1; i < accounts.length; ++i) {
            int256 size = sizeOf(accounts[i], market);
            bool other = size != 0 && (size > 0) != (loss.size > 0) && accounts[i] != account;
            if (!other || flagged(accounts[i]) || profits[i] <= needed + 1e6) continue;
            uint256 part = abs(loss.size) - loss.closed;
            if (abs(size) < part) part = abs(size);
            int256 had = hadBefore(accounts[i], int256(loss.perUnit * abs(size) / 1e18));
            assertTrue(had <= needed * int256(part) / 1e18 + 1e6, "a winner was left");
        }
    }

    /// @dev An account's equity before so much was laid on it; none where nobody can tell.
    function hadBefore(uint256 account, int256 laid) internal view returns (int256) {
        try exchange.assess(account) returns (IPerpExchange.Assessment memory a) {
            return a.equity + laid;
        } catch {
            return 0;
        }
    }

    /* WHAT MUST HOLD */

    /// @notice Sum of equity, fund and fees is never more than what is held, sizes add up to nothing, holders are
    /// who holds, and everybody is assessed as reckoned.
    function check() external view {
        assertSolvent(DUST * (acts + 1));
        for (uint256 market; market < 2; ++market) {
            checkMarket(market);
        }
        uint256 account = accounts[acts % accounts.length];
        IPerpExchange.Assessment memory a = judged(account);
        PerpReckoner.Sums memory s = reckoner.sums(account);
        assertEq(a.equity, s.equity, "equity");
        assertEq(int256(a.maintenance), s.maintenance, "maintenance");
        assertEq(int256(a.required), s.required, "required");
    }

    function checkMarket(uint256 market) internal view {
        int256 sizes;
        uint256[2] memory sides;
        uint256 count;
        for (uint256 i; i < accounts.length; ++i) {
            IPerpExchange.Position memory position = exchange.holding(accounts[i], market);
            sizes += position.size;
            bool marked = exchange.accountOf(accounts[i]).markets >> market & 1 == 1;
            assertTrue(marked == (position.size != 0), "marked as holder");
            if (accounts[i] == HOUSE || position.size == 0) continue;
            ++count;
            sides[position.size > 0 ? 0 : 1] += abs(position.size);
            assertEq(exchange.holders(market, position.slot, 1)[0], accounts[i], "in its slot");
        }
        assertEq(sizes, 0, "sizes add up to nothing");
        assertEq(exchange.holders(market, 0, 100).length, count, "holders");
        assertEq(exchange.stateOf(market).longSize, sides[0], "longs");
        assertEq(exchange.stateOf(market).shortSize, sides[1], "shorts");
    }

    function abs(int256 a) internal pure returns (uint256) {
        return uint256(a < 0 ? -a : a);
    }
}
