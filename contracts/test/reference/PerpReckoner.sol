// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {Feed} from "../mocks/Feed.sol";

/// @notice The formulas of docs/perps.md once more, from what is stored and what the feeds say, sharing no code with
/// the exchange. Fractions are kept until the one rounding each formula has.
contract PerpReckoner {
    int256 internal constant ONE = 1e18;

    IPerpExchange internal immutable EXCHANGE;

    constructor(IPerpExchange exchange) {
        EXCHANGE = exchange;
    }

    /* ROUNDING */

    function down(int256 a, int256 b) public pure returns (int256 q) {
        q = a / b;
        if (a % b != 0 && a < 0) --q;
    }

    function up(int256 a, int256 b) public pure returns (int256 q) {
        q = a / b;
        if (a % b != 0 && a > 0) ++q;
    }

    function least(int256 a, int256 b) internal pure returns (int256) {
        return a < b ? a : b;
    }

    function most(int256 a, int256 b) internal pure returns (int256) {
        return a < b ? b : a;
    }

    function abs(int256 a) internal pure returns (int256) {
        return a < 0 ? -a : a;
    }

    /* MARKET */

    /// @notice A market as it stands: mark, funding rate, and what one unit long has paid since it was last written.
    struct Look {
        IPerpExchange.MarketParameters set;
        IPerpExchange.MarketState state;
        int256 price;
        int256 rate;
        int256 perUnit;
    }

    function look(uint256 market) public view returns (Look memory l) {
        l.set = EXCHANGE.parametersOf(market);
        l.state = EXCHANGE.stateOf(market);
        Feed feed = Feed(l.set.feed);
        l.price = feed.answer() * int256(10 ** (18 - feed.decimals()));
        int256 time = int256(block.timestamp) - int256(uint256(l.state.updatedAt));
        int256 skew = int256(uint256(l.state.longSize)) - int256(uint256(l.state.shortSize));
        int256 tilt = most(-ONE, least(ONE, skew * ONE / int256(uint256(l.set.skewScale))));
        l.rate = l.state.rate + tilt * int256(uint256(l.set.maxFundingVelocity)) * time / (86_400 * ONE);
        l.perUnit = (l.state.rate + l.rate) * time * l.price / (2 * 86_400 * ONE);
    }

    function mark(uint256 market) external view returns (int256) {
        return look(market).price;
    }

    function margins(Look memory l, int256 size) internal pure returns (int256 initial, int256 maintenance) {
        if (size == 0) return (0, 0);
        int256 worth = up(abs(size) * l.price, ONE);
        int256 ratio = up(abs(size) * int256(uint256(l.set.marginSlope)), int256(uint256(l.set.skewScale)))
            + int256(uint256(l.set.minInitialRatio));
        initial = up(worth * ratio, ONE) + int256(uint256(l.set.minMargin));
        ratio = up(ratio * int256(uint256(l.set.maintenanceScalar)), ONE);
        maintenance = up(worth * ratio, ONE) + int256(uint256(l.set.minMargin));
    }

    /// @notice mark (1 + (skew + size/2) / skewScale), what that costs, and the fee on what shrinks and grows the skew.
    function traded(uint256 market, int256 size) external view returns (int256 fill, int256 cost, int256 fee) {
        Look memory l = look(market);
        int256 twice = 2 * int256(uint256(l.set.skewScale));
        int256 skew = int256(uint256(l.state.longSize)) - int256(uint256(l.state.shortSize));
        int256 moved = l.price * (twice + 2 * skew + size);
        fill = size > 0 ? up(moved, twice) : down(moved, twice);
        cost = up(size * fill, ONE);
        int256 shrinking = skew > 0 && size < 0 || skew < 0 && size > 0 ? least(abs(size), abs(skew)) : int256(0);
        int256 maker = abs(cost) * shrinking / abs(size);
        fee = maker * int256(uint256(l.set.makerFee)) + (abs(cost) - maker) * int256(uint256(l.set.takerFee));
        fee = up(fee, ONE);
    }

    /// @notice (maker fee + taker fee) skewScale multiplier seconds, less what was used; or one more chunk a block.
    function capacity(uint256 market) public view returns (int256) {
        IPerpExchange.MarketState memory state = EXCHANGE.stateOf(market);
        IPerpExchange.MarketParameters memory set = EXCHANGE.parametersOf(market);
        int256 scale = int256(uint256(set.skewScale));
        int256 chunk = down(int256(uint256(set.makerFee + set.takerFee)) * scale, ONE);
        chunk = down(chunk * int256(uint256(set.windowMultiplier)), ONE) * int256(uint256(set.windowS));
        if (chunk == 0) return type(int256).max;
        bool running = block.timestamp - state.windowStart < set.windowS;
        int256 used = running ? int256(uint256(state.windowUsed)) : int256(0);
        if (used < chunk) return chunk - used;
        int256 skew = int256(uint256(state.longSize)) - int256(uint256(state.shortSize));
        if (abs(skew) * ONE >= int256(uint256(set.maxPd)) * scale) return 0;
        return block.number == state.lastTakenBlock ? int256(0) : chunk;
    }

    /* ACCOUNT */

    struct Sums {
        int256 equity;
        int256 notional;
        int256 initial;
        int256 maintenance;
        int256 required;
    }

    function sums(uint256 account) public view returns (Sums memory s) {
        IPerpExchange.Account memory holder = EXCHANGE.accountOf(account);
        s.equity = holder.collateral;
        for (uint256 market; market < EXCHANGE.marketCount(); ++market) {
            IPerpExchange.Position memory position = EXCHANGE.holding(account, market);
            if (position.size == 0) continue;
            Look memory l = look(market);
            s.equity += down(position.size * l.price, ONE) - position.cost - owed(position, l);
            (int256 initial, int256 maintenance) = margins(l, position.size);
            s.notional += up(abs(position.size) * l.price, ONE);
            s.initial += initial;
            s.maintenance += maintenance;
            s.required += maintenance;
            if (account != 0) s.required += reward(share(penalty(l, abs(position.size))));
        }
    }

    /// @notice What a position owes now.
    function pending(uint256 account, uint256 market) external view returns (int256) {
        return owed(EXCHANGE.holding(account, market), look(market));
    }

    /// @notice Unrealized result of one unit of a position, after what it owes; zero without one.
    function profit(uint256 account, uint256 market) external view returns (int256) {
        IPerpExchange.Position memory position = EXCHANGE.holding(account, market);
        if (position.size == 0) return 0;
        Look memory l = look(market);
        int256 whole = down(position.size * l.price, ONE) - position.cost - owed(position, l);
        return down(whole * ONE, abs(position.size));
    }

    function owed(IPerpExchange.Position memory position, Look memory l) internal pure returns (int256) {
        if (position.size > 0) return up(position.size * (l.state.longIndex + l.perUnit - position.index), ONE);
        return up(-int256(position.size) * (l.state.shortIndex - l.perUnit - position.index), ONE);
    }

    /* LIQUIDATION */

    function penalty(Look memory l, int256 size) internal pure returns (int256) {
        return up(up(size * l.price, ONE) * int256(uint256(l.set.penaltyRatio)), ONE);
    }

    function share(int256 whole) public view returns (int256) {
        return down(whole * int256(uint256(EXCHANGE.parameters().keeperShare)), ONE);
    }

    /// @notice min(max(cost + minReward, cost (1 + minProfit), cost + share), maxReward)
    function reward(int256 shared) public view returns (int256) {
        IPerpExchange.Parameters memory set = EXCHANGE.parameters();
        int256 cost = int256(uint256(set.executionCost));
        int256 wanted = cost + int256(uint256(set.minReward));
        wanted = most(wanted, down(cost * (ONE + int256(uint256(set.minProfitRatio))), ONE));
        return least(most(wanted, cost + shared), int256(uint256(set.maxReward)));
    }

    /// @notice All, or the part that the account's whole notional allows.
    function tier(uint256 account, uint256 market) public view returns (int256) {
        IPerpExchange.Parameters memory set = EXCHANGE.parameters();
        Sums memory s = sums(account);
        int256 size = abs(EXCHANGE.holding(account, market).size);
        int256 worth = up(size * look(market).price, ONE);
        if (s.equity >= s.required) return 0;
        if (worth <= int256(uint256(set.wholeBelow))) return size;
        if (s.equity < down(s.maintenance * int256(uint256(set.criticalRatio)), ONE)) return size;
        return least(size, up(size * up(s.notional * int256(uint256(set.partialRatio)), ONE), worth));
    }

    /// @notice Equity that goes with a part of a position: its part of the maintenance margin.
    function part(uint256 account, uint256 market, int256 closed) public view returns (int256) {
        Sums memory s = sums(account);
        int256 size = abs(EXCHANGE.holding(account, market).size);
        Look memory l = look(market);
        (, int256 before) = margins(l, size);
        (, int256 rest) = margins(l, size - closed);
        return down(s.equity * (before - rest), s.maintenance);
    }

    /// @notice What a cash liquidation of `closed` charges and pays; `wanted` is what the tiers allowed.
    function cash(uint256 account, uint256 market, int256 closed, int256 wanted)
        public
        view
        returns (int256 charge, int256 paid)
    {
        int256 equity = sums(account).equity;
        int256 whole = penalty(look(market), closed);
        int256 unit = int256(EXCHANGE.SCALE());
        if (equity <= 0) {
            paid = least(reward(whole), int256(EXCHANGE.fund()) + equity);
            return (0, paid / unit * unit);
        }
        int256 margin = part(account, market, closed);
        paid = reward(EXCHANGE.accountOf(account).cut ? int256(0) : share(penalty(look(market), wanted)));
        paid = least(paid, down(margin * int256(uint256(EXCHANGE.parameters().maxRewardRatio)), ONE));
        paid = paid / unit * unit;
        charge = least(most(whole, paid), margin);
    }

    /// @notice What inheriting `closed` charges and gives as a discount.
    function discount(uint256 account, uint256 market, int256 closed)
        public
        view
        returns (int256 charge, int256 given)
    {
        int256 equity = sums(account).equity;
        int256 whole = penalty(look(market), closed);
        if (equity <= 0) return (0, least(whole, int256(EXCHANGE.fund()) + equity));
        charge = least(whole, part(account, market, closed));
        given = share(charge);
    }
}
