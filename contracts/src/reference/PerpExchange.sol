// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAggregator} from "../interfaces/IAggregator.sol";
import {IERC20} from "../interfaces/IERC20.sol";
import {IPerpExchange} from "../interfaces/IPerpExchange.sol";

/// @title PerpExchange
/// @notice A small, faithful perpetual-futures exchange, to copy and to test keepers against.
///
/// Every trade is with the house: account 0, whose collateral anybody may grow. It takes the other side at the mark
/// moved by the skew, so that whoever unbalances the market pays it and whoever balances it is paid. The house is an
/// account like any other: it has equity and margin, pays and receives funding, and takes no trade that it has no
/// margin for.
///
/// Why a house and not named makers: the sizes of all accounts, the house included, add up to zero at every moment, and
/// what one account pays for a size another one gets. So results and funding add up to zero too, whatever happens, and
/// nobody need be found on the other side. Every division rounds against the account it is about, hence
///
///     sum of equity + fund + fees <= tokens held.
///
/// And the house's capital is finite, so a loss nobody can pay is somebody's: the fund pays first; then winners on the
/// other side are closed at the price where the bankrupt's equity is zero, and lose profit only; what is still missing
/// is laid on every unit of the other side, the house among them. The house itself is deleveraged the same way.
///
/// The formulas are in docs/perps.md, with an example.
contract PerpExchange is IPerpExchange {
    /* TYPES */

    /// @dev What an account must have: no debt, what liquidation asks for, or the initial margin too.
    enum Margin {
        NONE,
        KEEP,
        OPEN
    }

    /// @dev A position that is being deleveraged: the size still open, and the loss that comes with it.
    struct Rest {
        uint256 account;
        uint256 market;
        bool long;
        uint256 price;
        uint256 size;
        uint256 loss;
    }

    /* CONSTANTS */

    int256 private constant WAD = 1e18;
    uint256 private constant UWAD = 1e18;
    int256 private constant DAY = 1 days;
    uint256 private constant MAX_DECIMALS = 18;
    /// @dev Bits in `Account.markets`.
    uint256 private constant MAX_MARKETS = 256;

    /// @inheritdoc IPerpExchange
    uint256 public constant HOUSE = 0;

    /// @inheritdoc IPerpExchange
    uint256 public constant NEWEST = type(uint256).max;

    /* IMMUTABLES */

    /// @inheritdoc IPerpExchange
    address public immutable TOKEN;

    /// @inheritdoc IPerpExchange
    uint256 public immutable SCALE;

    /* STORAGE */

    /// @inheritdoc IPerpExchange
    address public owner;

    /// @inheritdoc IPerpExchange
    bool public openPaused;

    /// @inheritdoc IPerpExchange
    bool public liquidationPaused;

    /// @inheritdoc IPerpExchange
    address public guardian;

    /// @inheritdoc IPerpExchange
    uint256 public fund;

    /// @inheritdoc IPerpExchange
    uint256 public fees;

    /// @inheritdoc IPerpExchange
    uint256 public gatedUntil;

    /// @inheritdoc IPerpExchange
    uint256 public accountCount;

    /// @inheritdoc IPerpExchange
    uint256 public marketCount;

    /// @inheritdoc IPerpExchange
    mapping(address creator => uint256 account) public newestOf;

    Parameters internal _parameters;
    mapping(uint256 market => MarketParameters) internal _parametersOf;
    /// @dev Price per unit of the feed's answer.
    mapping(uint256 market => uint256) internal _answerScale;
    mapping(uint256 market => MarketState) internal _states;
    mapping(uint256 market => uint256[]) internal _holders;
    mapping(uint256 account => Account) internal _accounts;
    mapping(uint256 account => mapping(uint256 market => Position)) internal _positions;

    bool internal transient _entered;

    /* CONSTRUCTOR */

    /// @param token Collateral: at most 18 decimals, no fee on transfer, no rebasing.
    /// @param firstOwner Changes the settings and owns the house.
    constructor(address token, address firstOwner) {
        uint256 decimals = IERC20(token).decimals();
        if (decimals > MAX_DECIMALS) revert InvalidParameter("decimals");
        TOKEN = token;
        SCALE = 10 ** (MAX_DECIMALS - decimals);
        _setOwner(firstOwner);
        accountCount = 1;
        emit AccountCreated(HOUSE, firstOwner, false);
    }

    /* MODIFIERS */

    modifier onlyOwner() {
        _onlyOwner();
        _;
    }

    modifier nonReentrant() {
        _enter();
        _;
        _entered = false;
    }

    function _onlyOwner() internal view {
        if (msg.sender != owner) revert NotOwner(msg.sender);
    }

    function _enter() internal {
        if (_entered) revert Reentered();
        _entered = true;
    }

    /* MONEY */

    /// @inheritdoc IPerpExchange
    function createAccount(bool isolated) external returns (uint256 account) {
        return _createAccount(isolated);
    }

    function _createAccount(bool isolated) internal returns (uint256 account) {
        account = accountCount++;
        _accounts[account].owner = msg.sender;
        _accounts[account].isolated = isolated;
        newestOf[msg.sender] = account;
        emit AccountCreated(account, msg.sender, isolated);
    }

    /// @inheritdoc IPerpExchange
    function deposit(uint256 account, uint256 amount) external nonReentrant {
        if (account >= accountCount) revert UnknownAccount(account);
        _deposit(account, amount);
    }

    /// @inheritdoc IPerpExchange
    function payIn(uint256 amount) external nonReentrant returns (uint256 account) {
        account = newestOf[msg.sender];
        if (account == HOUSE) account = _createAccount(false);
        _deposit(account, amount);
    }

    function _deposit(uint256 account, uint256 amount) internal {
        _pull(amount);
        _credit(account, int256(amount * SCALE));
        emit Deposited(account, amount, _accounts[account].collateral);
    }

    /// @inheritdoc IPerpExchange
    function withdraw(uint256 account, uint256 amount, address to) external nonReentrant {
        account = _mine(account);
        _requireUngated();
        Assessment memory a = _assess(account);
        // Unrealized gains are not paid out: whoever owes them has not paid them in.
        int256 most = _min(a.equity, _accounts[account].collateral) - int256(_max(a.initial, a.required));
        if (most < 0 || amount > uint256(most) / SCALE) {
            revert NotWithdrawable(account, amount, most < 0 ? 0 : uint256(most) / SCALE);
        }
        _credit(account, -int256(amount * SCALE));
        emit Withdrawn(account, amount, _accounts[account].collateral);
        _push(to, amount);
    }

    /// @inheritdoc IPerpExchange
    function withdrawAll(uint256 account) external nonReentrant returns (uint256 amount) {
        account = _mine(account);
        _requireUngated();
        Account storage holder = _accounts[account];
        if (holder.markets != 0) revert PositionsOpen(account, holder.markets);
        amount = _positive(holder.collateral) / SCALE;
        _credit(account, -int256(amount * SCALE));
        emit Withdrawn(account, amount, holder.collateral);
        _push(msg.sender, amount);
    }

    /// @inheritdoc IPerpExchange
    function growFund(uint256 amount) external nonReentrant {
        _pull(amount);
        fund += amount * SCALE;
        emit FundGrown(msg.sender, amount, fund);
    }

    /// @inheritdoc IPerpExchange
    function collectFees(uint256 amount, address to) external onlyOwner nonReentrant {
        _requireUngated();
        fees -= amount * SCALE;
        emit FeesCollected(amount, fees);
        _push(to, amount);
    }

    /* TRADING */

    /// @inheritdoc IPerpExchange
    function trade(uint256 account, uint256 market, int256 sizeDelta, uint256 limit)
        external
        nonReentrant
        returns (uint256 fill)
    {
        account = _mine(account);
        if (sizeDelta == 0) revert AmountZero();
        uint256 price = _accrue(market).price;
        int256 skew = _skew(market);
        bool reduces = _reduces(_positions[account][market].size, sizeDelta);
        if (openPaused && !reduces) revert OpenIsPaused();

        uint256 fee;
        int256 cost;
        (fill, cost, fee) = _fill(market, price, sizeDelta);
        if (sizeDelta > 0 ? fill > limit : fill < limit) revert PriceLimit(fill, limit);
        _credit(account, -int256(fee));
        fees += fee;
        _swap(account, HOUSE, market, sizeDelta, cost);
        emit Traded(account, market, sizeDelta, fill, fee);

        _requireMargin(account, reduces ? Margin.KEEP : Margin.OPEN);
        // And nobody trades with a house that owes more than it has: deleverage it first.
        _requireMargin(HOUSE, _abs(_skew(market)) > _abs(skew) ? Margin.OPEN : Margin.NONE);
    }

    /// @dev The fill price is the mark at the middle of the skew's way, rounded against the trader, and so is the cost.
    function _fill(uint256 market, uint256 price, int256 sizeDelta)
        internal
        view
        returns (uint256 fill, int256 cost, uint256 fee)
    {
        MarketParameters storage set = _parametersOf[market];
        int256 skew = _skew(market);
        uint256 size = _abs(sizeDelta);
        int256 twice = 2 * int256(uint256(set.skewScale));
        int256 moved = twice + 2 * skew + sizeDelta;
        if (moved <= 0) revert InvalidParameter("skewScale");
        fill = sizeDelta > 0
            ? _ceilDiv(price * uint256(moved), uint256(twice))
            : price * uint256(moved) / uint256(twice);
        cost = -_floorDiv(-sizeDelta * int256(fill), UWAD);

        uint256 shrinking = (skew > 0) == (sizeDelta > 0) ? 0 : _min(size, _abs(skew));
        uint256 notional = _abs(cost);
        uint256 maker = notional * shrinking / size;
        fee = _ceilDiv(maker * set.makerFee + (notional - maker) * set.takerFee, UWAD);
    }

    /* ACCOUNTS */

    /// @dev Equity, margins and what the account must keep, at the marks of now, whether or not anything is written.
    function _assess(uint256 account) internal view returns (Assessment memory a) {
        a.equity = _accounts[account].collateral;
        uint256 markets = _accounts[account].markets;
        for (uint256 market; markets != 0; ++market) {
            if (markets & 1 != 0) {
                Live memory live = _live(market);
                Position storage position = _positions[account][market];
                a.equity += _value(position.size, live.price) - position.cost - _owed(position, live);
                uint256 size = _abs(position.size);
                uint256 notional = _ceilDiv(size * live.price, UWAD);
                (uint256 initial, uint256 maintenance) = _margins(market, size, live.price);
                a.notional += notional;
                a.initial += initial;
                a.maintenance += maintenance;
                a.required += maintenance;
                if (account != HOUSE) a.required += _reward(_share(_penalty(market, notional)));
            }
            markets >>= 1;
        }
    }

    /// @dev Margins grow with size; the flat margin is a slope of zero. Never zero for a position.
    function _margins(uint256 market, uint256 size, uint256 price)
        internal
        view
        returns (uint256 initial, uint256 maintenance)
    {
        if (size == 0) return (0, 0);
        MarketParameters storage set = _parametersOf[market];
        uint256 notional = _ceilDiv(size * price, UWAD);
        uint256 ratio = _ceilDiv(size * set.marginSlope, set.skewScale) + set.minInitialRatio;
        initial = _ceilDiv(notional * ratio, UWAD) + set.minMargin;
        ratio = _ceilDiv(ratio * set.maintenanceScalar, UWAD);
        maintenance = _ceilDiv(notional * ratio, UWAD) + set.minMargin;
    }

    /// @dev No position is born liquidatable: who opens leaves both the initial margin and what liquidation asks for.
    /// Who only reduces may leave less than the initial margin.
    function _requireMargin(uint256 account, Margin margin) internal view {
        Assessment memory a = _assess(account);
        uint256 required = margin == Margin.NONE ? 0 : a.required;
        if (margin == Margin.OPEN) required = _max(a.initial, required);
        if (a.equity < int256(required)) revert MarginTooLow(account, a.equity, required);
    }

    function _healthy(uint256 account) internal view returns (bool) {
        Assessment memory a = _assess(account);
        return a.equity >= int256(a.required);
    }

    /// @dev What a position owes since its side's index was last applied to it: funding and socialized loss.
    function _owed(Position storage position, Live memory live) internal view returns (int256) {
        int256 size = position.size;
        int256 index = size > 0 ? live.longIndex : live.shortIndex;
        return -_floorDiv(-int256(_abs(size)) * (index - position.index), UWAD);
    }

    /// @dev The indices as written, which are those of now once a call has accrued.
    function _written(MarketState storage state) internal view returns (Live memory) {
        return Live(0, 0, state.longIndex, state.shortIndex);
    }

    /// @dev Position against position: `account` takes `sizeDelta` for `cost`, `other` gives it. Sums stay zero.
    function _swap(uint256 account, uint256 other, uint256 market, int256 sizeDelta, int256 cost) internal {
        _move(account, market, sizeDelta, cost);
        _move(other, market, -sizeDelta, -cost);
    }

    /// @dev Settles what is owed, then changes a position. Collateral less cost changes by the cost paid, and by
    /// nothing else.
    function _move(uint256 account, uint256 market, int256 sizeDelta, int256 cost) internal {
        Position storage position = _positions[account][market];
        int256 size = position.size;
        int256 next = size + sizeDelta;
        int256 basis = _basis(size, position.cost, sizeDelta, cost);
        _credit(account, basis - position.cost - cost - _settle(position, _states[market], next));
        position.size = _int128(next);
        position.cost = _int128(basis);
        if (account != HOUSE) {
            MarketState storage state = _states[market];
            state.longSize = _uint128(state.longSize + _positive(next) - _positive(size));
            state.shortSize = _uint128(state.shortSize + _positive(-next) - _positive(-size));
        }
        if (size == 0 && next != 0) _enroll(account, market);
        if (size != 0 && next == 0) _dismiss(account, market);
        emit Modified(account, market, sizeDelta, next, basis, _accounts[account].collateral);
    }

    /// @dev The cost that stays with a changed position: the closed part takes its share along, a turned one begins
    /// anew.
    function _basis(int256 size, int256 basis, int256 sizeDelta, int256 cost) internal pure returns (int256) {
        int256 next = size + sizeDelta;
        if (next == 0) return 0;
        if (_reduces(size, sizeDelta)) return basis * next / size;
        if (size != 0 && (size > 0) != (next > 0)) return cost * next / sizeDelta;
        return basis + cost;
    }

    /// @dev Returns what the position owes and starts counting for its next side.
    function _settle(Position storage position, MarketState storage state, int256 next) internal returns (int256 owed) {
        owed = _owed(position, _written(state));
        position.index = next > 0 ? state.longIndex : state.shortIndex;
    }

    function _enroll(uint256 account, uint256 market) internal {
        Account storage holder = _accounts[account];
        holder.markets |= 1 << market;
        if (account == HOUSE) return;
        uint256 most = holder.isolated ? 1 : _parameters.maxMarkets;
        uint256 count;
        for (uint256 bits = holder.markets; bits != 0; bits &= bits - 1) {
            ++count;
        }
        if (count > most) revert TooManyMarkets(account);
        _positions[account][market].slot = uint64(_holders[market].length);
        _holders[market].push(account);
    }

    function _dismiss(uint256 account, uint256 market) internal {
        _accounts[account].markets &= ~(1 << market);
        if (account == HOUSE) return;
        uint256[] storage list = _holders[market];
        uint64 slot = _positions[account][market].slot;
        uint256 last = list[list.length - 1];
        list[slot] = last;
        _positions[last][market].slot = slot;
        list.pop();
    }

    /* FUNDING */

    /// @dev The mark, and the funding since the indices were written: the rate drifts by the skew, and the mean of its
    /// two ends times the time is what one unit pays. Longs owe exactly what shorts are owed.
    function _live(uint256 market) internal view returns (Live memory live) {
        MarketState storage state = _states[market];
        live.price = _mark(market);
        (live.rate, live.longIndex, live.shortIndex) = (state.rate, state.longIndex, state.shortIndex);
        int256 elapsed = int256(block.timestamp - state.updatedAt);
        if (elapsed == 0) return live;
        MarketParameters storage set = _parametersOf[market];
        int256 skew = _skew(market) * WAD / int256(uint256(set.skewScale));
        skew = skew > WAD ? WAD : skew < -WAD ? -WAD : skew;
        live.rate += skew * int256(uint256(set.maxFundingVelocity)) * elapsed / (WAD * DAY);
        int256 accrued = (state.rate + live.rate) * elapsed * int256(live.price) / (2 * DAY * WAD);
        live.longIndex += accrued;
        live.shortIndex -= accrued;
    }

    function _accrue(uint256 market) internal returns (Live memory live) {
        live = _live(market);
        MarketState storage state = _states[market];
        if (state.updatedAt == block.timestamp) return live;
        state.rate = _int128(live.rate);
        state.longIndex = _int128(live.longIndex);
        state.shortIndex = _int128(live.shortIndex);
        state.updatedAt = uint40(block.timestamp);
        emit Accrued(market, live.price, live.rate, live.longIndex, live.shortIndex);
    }

    function _mark(uint256 market) internal view returns (uint256) {
        if (market >= marketCount) revert UnknownMarket(market);
        MarketParameters storage set = _parametersOf[market];
        (, int256 answer,, uint256 updatedAt,) = IAggregator(set.feed).latestRoundData();
        if (answer <= 0 || updatedAt > block.timestamp || block.timestamp - updatedAt > set.maxAgeS) {
            revert StaleMark(market, answer, updatedAt);
        }
        return uint256(answer) * _answerScale[market];
    }

    /* FLAGS */

    /// @inheritdoc IPerpExchange
    function flag(uint256 account) external nonReentrant {
        _requireLiquidating();
        Assessment memory a = _assess(account);
        if (a.equity >= int256(a.required)) revert NotLiquidatable(account, a.equity, a.required);
        if (a.equity >= 0 && _accounts[account].flagged) revert AlreadyFlagged(account);
        _flag(account, a);
    }

    /// @inheritdoc IPerpExchange
    function unflag(uint256 account) external nonReentrant {
        if (!_accounts[account].flagged) revert NotFlagged(account);
        _requireMargin(account, Margin.KEEP);
        _release(account);
    }

    /// @dev Freezes the account unless it is frozen, and gates withdrawals if it owes more than it has.
    function _flag(uint256 account, Assessment memory a) internal {
        if (!_accounts[account].flagged) {
            _accounts[account].flagged = true;
            emit Flagged(account, msg.sender, a.equity, a.required);
        }
        if (a.equity < 0) {
            gatedUntil = block.timestamp + _parameters.gateS;
            emit WithdrawalsGatedUntil(gatedUntil);
        }
    }

    /// @dev Frees the account if it is healthy again.
    function _release(uint256 account) internal {
        if (!_healthy(account)) return;
        _accounts[account].flagged = false;
        _accounts[account].cut = false;
        emit Unflagged(account);
    }

    /* LIQUIDATION */

    /// @inheritdoc IPerpExchange
    function liquidate(uint256 account, uint256 market) external nonReentrant returns (Quote memory quote) {
        quote = _liquidate(account, market, type(uint256).max, HOUSE);
        _push(msg.sender, quote.reward / SCALE);
    }

    /// @inheritdoc IPerpExchange
    function inherit(uint256 account, uint256 market, uint256 size, uint256 heir)
        external
        nonReentrant
        returns (Quote memory quote)
    {
        heir = _mine(heir);
        if (heir == HOUSE || heir == account) revert InvalidHeir(heir);
        if (size == 0) revert AmountZero();
        quote = _liquidate(account, market, size, heir);
        _requireMargin(heir, Margin.OPEN);
    }

    function _liquidate(uint256 account, uint256 market, uint256 most, uint256 heir)
        internal
        returns (Quote memory quote)
    {
        _requireLiquidating();
        _accrue(market);
        Assessment memory a = _assess(account);
        quote = _quote(account, market, most, heir == HOUSE, a);
        if (quote.liquidatable == 0) revert NotLiquidatable(account, a.equity, a.required);
        if (quote.missing != 0) revert FundShort(uint256(-a.equity), fund);
        if (quote.size == 0) revert RateLimited(market);

        _flag(account, a);
        if (heir == HOUSE) _useWindow(account, market, quote);
        else _credit(heir, int256(quote.reward));
        if (a.equity < 0) emit BadDebt(account, uint256(-a.equity), uint256(-a.equity));
        fund = fund + quote.toFund - quote.fromFund;
        _credit(account, (a.equity < 0 ? -a.equity : int256(0)) - int256(quote.charge));
        int256 sizeDelta = _positions[account][market].size > 0 ? -int256(quote.size) : int256(quote.size);
        _swap(account, heir, market, sizeDelta, _closingCost(account, market, sizeDelta, quote.price));
        emit Liquidated(account, market, msg.sender, heir, sizeDelta, quote);
        _release(account);
    }

    /// @dev What a liquidation would do: how much it closes, what the account pays, who gets it.
    function _quote(uint256 account, uint256 market, uint256 most, bool cash, Assessment memory a)
        internal
        view
        returns (Quote memory quote)
    {
        uint256 size = _abs(_positions[account][market].size);
        quote.price = _mark(market);
        if (account == HOUSE || size == 0 || a.equity >= int256(a.required)) return quote;
        quote.liquidatable = _tier(size, quote.price, a);
        quote.size = _min(quote.liquidatable, cash ? _capacity(market) : most);
        if (quote.size == 0) return quote;

        uint256 penalty = _penalty(market, _ceilDiv(quote.size * quote.price, UWAD));
        if (a.equity > 0) _quoteSolvent(account, market, size, penalty, cash, a, quote);
        else _quoteBankrupt(penalty, cash, a, quote);
    }

    /// @dev The account pays the penalty, or the reward if that is more, but never more than the share of its equity
    /// that goes with the closed part of its maintenance margin: so no liquidation lowers its margin ratio.
    function _quoteSolvent(
        uint256 account,
        uint256 market,
        uint256 size,
        uint256 penalty,
        bool cash,
        Assessment memory a,
        Quote memory quote
    ) internal view {
        (, uint256 before) = _margins(market, size, quote.price);
        (, uint256 rest) = _margins(market, size - quote.size, quote.price);
        uint256 margin = uint256(a.equity) * (before - rest) / a.maintenance;
        if (cash) {
            Parameters storage set = _parameters;
            // The keeper's share is of what it would have closed without the window, once.
            uint256 share = _accounts[account].cut
                ? 0
                : _share(_penalty(market, _ceilDiv(quote.liquidatable * quote.price, UWAD)));
            quote.reward = _wholeRaw(_min(_reward(share), margin * set.maxRewardRatio / UWAD));
            quote.charge = _min(_max(penalty, quote.reward), margin);
        } else {
            quote.charge = _min(penalty, margin);
            quote.reward = _share(quote.charge);
        }
        quote.toFund = quote.charge - quote.reward;
    }

    /// @dev The fund pays the deficit, and all the penalty to the keeper as far as it reaches.
    function _quoteBankrupt(uint256 penalty, bool cash, Assessment memory a, Quote memory quote) internal view {
        uint256 deficit = uint256(-a.equity);
        if (deficit > fund) {
            quote.missing = deficit - fund;
            quote.fromFund = fund;
            return;
        }
        quote.reward = _min(cash ? _reward(penalty) : penalty, fund - deficit);
        if (cash) quote.reward = _wholeRaw(quote.reward);
        quote.fromFund = deficit + quote.reward;
    }

    /// @dev Small positions and those of accounts in deep trouble are closed whole; of others a part, measured by all
    /// that the account holds, rounded up.
    function _tier(uint256 size, uint256 price, Assessment memory a) internal view returns (uint256) {
        Parameters storage set = _parameters;
        uint256 notional = _ceilDiv(size * price, UWAD);
        if (notional <= set.wholeBelow) return size;
        if (a.equity < int256(a.maintenance * set.criticalRatio / UWAD)) return size;
        return _min(size, _ceilDiv(size * _ceilDiv(a.notional * set.partialRatio, UWAD), notional));
    }

    /// @dev The reward in cash before the cap by the account's margin: costs and a least profit, or costs and a share
    /// of the penalty.
    function _reward(uint256 share) internal view returns (uint256) {
        Parameters storage set = _parameters;
        uint256 cost = set.executionCost;
        uint256 profit = _max(set.minReward, cost * set.minProfitRatio / UWAD);
        return _min(cost + _max(profit, share), set.maxReward);
    }

    function _penalty(uint256 market, uint256 notional) internal view returns (uint256) {
        return _ceilDiv(notional * _parametersOf[market].penaltyRatio, UWAD);
    }

    function _share(uint256 penalty) internal view returns (uint256) {
        return penalty * _parameters.keeperShare / UWAD;
    }

    /// @dev What closing costs, to the unit: the account's equity does not change by it.
    function _closingCost(uint256 account, uint256 market, int256 sizeDelta, uint256 price)
        internal
        view
        returns (int256)
    {
        int256 size = _positions[account][market].size;
        return _value(size + sizeDelta, price) - _value(size, price);
    }

    /* RATE WINDOW */

    /// @dev The house takes over only so much in a window; when that is used up, one more window's worth in each later
    /// block, and only while the skew is small.
    function _capacity(uint256 market) internal view returns (uint256) {
        MarketParameters storage set = _parametersOf[market];
        MarketState storage state = _states[market];
        uint256 most = (uint256(set.makerFee) + set.takerFee) * set.skewScale / UWAD * set.windowMultiplier / UWAD
            * set.windowS;
        if (most == 0) return type(uint256).max;
        uint256 used = block.timestamp < uint256(state.windowStart) + set.windowS ? state.windowUsed : 0;
        if (used < most) return most - used;
        bool calm = _abs(_skew(market)) * UWAD < uint256(set.maxPd) * set.skewScale;
        return calm && block.number > state.lastTakenBlock ? most : 0;
    }

    function _useWindow(uint256 account, uint256 market, Quote memory quote) internal {
        MarketState storage state = _states[market];
        if (block.timestamp >= uint256(state.windowStart) + _parametersOf[market].windowS) {
            state.windowStart = uint40(block.timestamp);
            state.windowUsed = 0;
        }
        state.windowUsed = _uint128(state.windowUsed + quote.size);
        state.lastTakenBlock = uint64(block.number);
        _accounts[account].cut = quote.size < quote.liquidatable;
    }

    /* LOSS WATERFALL */

    /// @inheritdoc IPerpExchange
    function deleverage(uint256 account, uint256 market, uint256 most) external nonReentrant {
        _requireLiquidating();
        uint256 price = _accrue(market).price;
        Assessment memory a = _assess(account);
        uint256 deficit = a.equity < 0 ? uint256(-a.equity) : 0;
        if (account == HOUSE ? a.equity >= int256(a.required) : deficit <= fund) revert NotBankrupt(account);
        int256 size = _positions[account][market].size;
        // A house that owes and holds nothing can still be helped by the fund.
        bool fundOnly = size == 0 && account == HOUSE && deficit != 0 && fund != 0;
        if (size == 0 && !fundOnly) revert NotLiquidatable(account, a.equity, a.required);
        _flag(account, a);

        Rest memory rest = Rest(account, market, size > 0, price, _abs(size), 0);
        if (deficit != 0) {
            uint256 loss = deficit - _payFromFund(account, deficit);
            // This position's part of the loss is its part of the maintenance margin.
            (, uint256 maintenance) = _margins(market, rest.size, price);
            rest.loss = fundOnly ? 0 : _ceilDiv(loss * maintenance, a.maintenance);
        }
        bool walkedAll = !_parameters.adl || _closeWinners(rest, most);
        if (walkedAll && rest.loss != 0) _socialize(rest);
        if (walkedAll && rest.size != 0 && account != HOUSE) _close(rest, HOUSE, rest.size);
        // Without a loss only winners could help the house.
        if (deficit == 0 && rest.size == _abs(size)) revert NobodyToDeleverage(account, market);
        _release(account);
    }

    /// @dev First the fund, with all it has.
    function _payFromFund(uint256 account, uint256 deficit) internal returns (uint256 paid) {
        paid = _min(fund, deficit);
        fund -= paid;
        _credit(account, int256(paid));
        emit BadDebt(account, deficit, paid);
    }

    /// @dev Then winners, from a random holder on. True when it walked past all of them.
    function _closeWinners(Rest memory rest, uint256 most) internal returns (bool) {
        uint256[] storage list = _holders[rest.market];
        uint256 length = list.length;
        uint256 steps = _min(most, length);
        if (steps == 0) return length == 0;
        uint256 start = uint256(keccak256(abi.encode(block.prevrandao, block.number, rest.account, rest.market)));
        // Copied first, since whoever is closed leaves the list; and no more than is walked, however long it is.
        uint256[] memory walked = new uint256[](steps);
        for (uint256 i; i < steps; ++i) {
            walked[i] = list[(start % length + i) % length];
        }
        for (uint256 i; i < steps && rest.size != 0; ++i) {
            bool closed = _closeWinner(rest, walked[i]);
            // The house goes on as soon as it has its margin again.
            if (closed && rest.account == HOUSE && _healthy(HOUSE)) return false;
        }
        return steps == length;
    }

    /// @dev Closes a winner's position against the account's, as far as both reach. A winner is on the other side, not
    /// frozen itself, and its profit on the closed part, after what it owes, covers the loss that comes with it; and so
    /// does its equity, or it would owe and hold nothing, where nobody could make up for it.
    function _closeWinner(Rest memory rest, uint256 winner) internal returns (bool) {
        Position storage position = _positions[winner][rest.market];
        int256 size = position.size;
        if (_accounts[winner].flagged || (size > 0) == rest.long) return false;
        uint256 closed = _min(_abs(size), rest.size);
        uint256 loss = _ceilDiv(rest.loss * closed, rest.size);
        int256 profit = _value(size, rest.price) - position.cost - _owed(position, _written(_states[rest.market]));
        if (_floorDiv(profit * int256(closed), _abs(size)) < int256(loss)) return false;
        if (loss != 0 && !_has(winner, loss)) return false;

        _credit(winner, -int256(loss));
        _credit(rest.account, int256(loss));
        rest.loss -= loss;
        _close(rest, winner, closed);
        emit Deleveraged(rest.account, rest.market, winner, closed, loss);
        return true;
    }

    /// @dev Whether an account has that much. Nobody can tell while one of its markets has no mark.
    function _has(uint256 account, uint256 money) internal view returns (bool) {
        try this.assess(account) returns (Assessment memory a) {
            return a.equity >= int256(money);
        } catch {
            return false;
        }
    }

    /// @dev Then every unit of the other side, whose size is the larger of both since the house fills up the smaller.
    function _socialize(Rest memory rest) internal {
        MarketState storage state = _states[rest.market];
        uint256 perUnit = _ceilDiv(rest.loss * UWAD, _max(state.longSize, state.shortSize));
        if (rest.long) state.shortIndex = _int128(state.shortIndex + int256(perUnit));
        else state.longIndex = _int128(state.longIndex + int256(perUnit));
        _credit(rest.account, int256(rest.loss));
        emit Socialized(rest.account, rest.market, rest.loss, perUnit);
    }

    function _close(Rest memory rest, uint256 other, uint256 size) internal {
        rest.size -= size;
        int256 sizeDelta = rest.long ? -int256(size) : int256(size);
        _swap(
            rest.account,
            other,
            rest.market,
            sizeDelta,
            _closingCost(rest.account, rest.market, sizeDelta, rest.price)
        );
    }

    /* SETTINGS */

    /// @inheritdoc IPerpExchange
    function setOwner(address newOwner) external onlyOwner {
        _setOwner(newOwner);
    }

    function _setOwner(address newOwner) internal {
        if (newOwner == address(0)) revert InvalidParameter("owner");
        owner = newOwner;
        _accounts[HOUSE].owner = newOwner;
        emit OwnerSet(newOwner);
    }

    /// @inheritdoc IPerpExchange
    function setGuardian(address newGuardian) external onlyOwner {
        guardian = newGuardian;
        emit GuardianSet(newGuardian);
    }

    /// @inheritdoc IPerpExchange
    function setPauses(bool open, bool liquidation) external {
        bool pausesOnly = (open || !openPaused) && (liquidation || !liquidationPaused);
        if (msg.sender != owner && !(msg.sender == guardian && pausesOnly)) revert NotGuardian(msg.sender);
        (openPaused, liquidationPaused) = (open, liquidation);
        emit PausesSet(open, liquidation);
    }

    /// @inheritdoc IPerpExchange
    function setParameters(Parameters calldata set) external onlyOwner {
        _requireRatio(set.keeperShare, "keeperShare");
        _requireRatio(set.maxRewardRatio, "maxRewardRatio");
        _requireRatio(set.criticalRatio, "criticalRatio");
        _requireRatio(set.partialRatio, "partialRatio");
        if (set.partialRatio == 0) revert InvalidParameter("partialRatio");
        if (set.maxMarkets == 0) revert InvalidParameter("maxMarkets");
        _parameters = set;
        emit ParametersSet(set);
    }

    /// @inheritdoc IPerpExchange
    function setMarket(uint256 market, MarketParameters calldata set) external onlyOwner {
        if (market > marketCount || market >= MAX_MARKETS) revert UnknownMarket(market);
        uint256 decimals = IAggregator(set.feed).decimals();
        if (decimals > MAX_DECIMALS) revert InvalidParameter("feed");
        if (set.skewScale == 0) revert InvalidParameter("skewScale");
        if (set.minInitialRatio == 0) revert InvalidParameter("minInitialRatio");
        if (set.maintenanceScalar == 0) revert InvalidParameter("maintenanceScalar");
        _requireRatio(set.maintenanceScalar, "maintenanceScalar");
        _requireRatio(set.makerFee, "makerFee");
        _requireRatio(set.takerFee, "takerFee");
        _requireRatio(set.penaltyRatio, "penaltyRatio");
        if (market == marketCount) {
            ++marketCount;
            _states[market].updatedAt = uint40(block.timestamp);
        } else {
            // Funding until now goes by the old parameters, unless their feed is dead.
            try this.liveOf(market) {
                _accrue(market);
            } catch {}
        }
        _parametersOf[market] = set;
        _answerScale[market] = 10 ** (MAX_DECIMALS - decimals);
        emit MarketSet(market, set);
    }

    function _requireRatio(uint256 ratio, bytes32 name) internal pure {
        if (ratio > UWAD) revert InvalidParameter(name);
    }

    /* CHECKS */

    function _mine(uint256 account) internal view returns (uint256) {
        if (account == NEWEST) account = newestOf[msg.sender];
        if (_accounts[account].owner != msg.sender) revert NotAccountOwner(account, msg.sender);
        if (_accounts[account].flagged) revert AccountIsFlagged(account);
        return account;
    }

    function _requireUngated() internal view {
        if (block.timestamp < gatedUntil) revert WithdrawalsGated(gatedUntil);
    }

    function _requireLiquidating() internal view {
        if (liquidationPaused) revert LiquidationIsPaused();
    }

    /* TOKENS */

    /// @dev What arrives must be what was asked for: a fee on transfer would leave the books short.
    function _pull(uint256 amount) internal {
        if (amount == 0) revert AmountZero();
        uint256 before = IERC20(TOKEN).balanceOf(address(this));
        bool success = _ask(
            abi.encodeWithSignature("transferFrom(address,address,uint256)", msg.sender, address(this), amount)
        );
        uint256 moved = IERC20(TOKEN).balanceOf(address(this)) - before;
        if (!success || moved != amount) revert TransferFailed(amount, moved);
    }

    function _push(address to, uint256 amount) internal {
        if (amount == 0) return;
        if (!_ask(abi.encodeCall(IERC20.transfer, (to, amount)))) revert TransferFailed(amount, 0);
    }

    /// @dev Whether the token carried out a request; some return nothing.
    function _ask(bytes memory request) internal returns (bool) {
        (bool success, bytes memory answer) = TOKEN.call(request);
        return success && (answer.length == 0 || (answer.length >= 32 && uint256(bytes32(answer)) == 1));
    }

    /* ARITHMETIC */

    function _credit(uint256 account, int256 money) internal {
        _accounts[account].collateral = _int128(_accounts[account].collateral + money);
    }

    /// @dev What a size is worth, rounded down: a long is worth less, a short owes more.
    function _value(int256 size, uint256 price) internal pure returns (int256) {
        return _floorDiv(size * int256(price), UWAD);
    }

    /// @dev Longs less shorts of all traders; the house holds the opposite.
    function _skew(uint256 market) internal view returns (int256) {
        return int256(uint256(_states[market].longSize)) - int256(uint256(_states[market].shortSize));
    }

    /// @dev Whether a change makes a position smaller, or nothing, without turning it.
    function _reduces(int256 size, int256 sizeDelta) internal pure returns (bool) {
        return size != 0 && (size > 0) != (sizeDelta > 0) && _abs(sizeDelta) <= _abs(size);
    }

    function _wholeRaw(uint256 money) internal view returns (uint256) {
        return money - money % SCALE;
    }

    function _ceilDiv(uint256 a, uint256 b) internal pure returns (uint256) {
        return a == 0 ? 0 : (a - 1) / b + 1;
    }

    function _floorDiv(int256 a, uint256 b) internal pure returns (int256) {
        return a >= 0 ? int256(uint256(a) / b) : -int256(_ceilDiv(uint256(-a), b));
    }

    function _abs(int256 a) internal pure returns (uint256) {
        return uint256(a < 0 ? -a : a);
    }

    function _positive(int256 a) internal pure returns (uint256) {
        return a > 0 ? uint256(a) : 0;
    }

    function _min(uint256 a, uint256 b) internal pure returns (uint256) {
        return a < b ? a : b;
    }

    function _min(int256 a, int256 b) internal pure returns (int256) {
        return a < b ? a : b;
    }

    function _max(uint256 a, uint256 b) internal pure returns (uint256) {
        return a > b ? a : b;
    }

    function _int128(int256 a) internal pure returns (int128) {
        if (a != int128(a)) revert Overflow();
        return int128(a);
    }

    function _uint128(uint256 a) internal pure returns (uint128) {
        if (a > type(uint128).max) revert Overflow();
        return uint128(a);
    }

    /* VIEWS */

    /// @inheritdoc IPerpExchange
    function parameters() external view returns (Parameters memory) {
        return _parameters;
    }

    /// @inheritdoc IPerpExchange
    function parametersOf(uint256 market) external view returns (MarketParameters memory) {
        return _parametersOf[market];
    }

    /// @inheritdoc IPerpExchange
    function stateOf(uint256 market) external view returns (MarketState memory) {
        return _states[market];
    }

    /// @inheritdoc IPerpExchange
    function liveOf(uint256 market) external view returns (Live memory) {
        return _live(market);
    }

    /// @inheritdoc IPerpExchange
    function accountOf(uint256 account) external view returns (Account memory) {
        return _accounts[account];
    }

    /// @inheritdoc IPerpExchange
    function holding(uint256 account, uint256 market) external view returns (Position memory) {
        return _positions[account][market];
    }

    /// @inheritdoc IPerpExchange
    function accounts(uint256 from, uint256 count) external view returns (Account[] memory page) {
        page = new Account[](_page(accountCount, from, count));
        for (uint256 i; i < page.length; ++i) {
            page[i] = _accounts[from + i];
        }
    }

    /// @inheritdoc IPerpExchange
    function holders(uint256 market, uint256 from, uint256 count) external view returns (uint256[] memory page) {
        page = new uint256[](_page(_holders[market].length, from, count));
        for (uint256 i; i < page.length; ++i) {
            page[i] = _holders[market][from + i];
        }
    }

    function _page(uint256 length, uint256 from, uint256 count) internal pure returns (uint256) {
        return from >= length ? 0 : _min(count, length - from);
    }

    /// @inheritdoc IPerpExchange
    function assess(uint256 account) external view returns (Assessment memory) {
        return _assess(account);
    }

    /// @inheritdoc IPerpExchange
    function capacityOf(uint256 market) external view returns (uint256) {
        return _capacity(market);
    }

    /// @inheritdoc IPerpExchange
    function quoteTrade(uint256 market, int256 sizeDelta) external view returns (uint256 fill, uint256 fee) {
        if (sizeDelta == 0) revert AmountZero();
        (fill,, fee) = _fill(market, _mark(market), sizeDelta);
    }

    /// @inheritdoc IPerpExchange
    function quoteLiquidation(uint256 account, uint256 market) external view returns (Quote memory) {
        return _quote(account, market, type(uint256).max, true, _assess(account));
    }

    /// @inheritdoc IPerpExchange
    function quoteInheritance(uint256 account, uint256 market, uint256 size) external view returns (Quote memory) {
        return _quote(account, market, size, false, _assess(account));
    }
}
