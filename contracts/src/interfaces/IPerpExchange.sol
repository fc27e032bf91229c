// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title IPerpExchange
/// @notice Perpetual futures against one house, with the whole ladder of liquidation: partial tiers, cash or inherited
/// position, insurance fund, auto-deleveraging, socialized loss.
/// @dev Units. Money (equity, margin, cost, fee, reward, fund) is collateral scaled to 18 decimals; amounts of the
/// token itself are named `amount` and raw. Sizes have 18 decimals, positive long, negative short. Prices are money per
/// unit, 18 decimals. Ratios are scaled by 1e18. `_S` fields are seconds.
interface IPerpExchange {
    /* TYPES */

    /// @notice What the whole exchange goes by.
    /// @param executionCost What one liquidation costs its keeper.
    /// @param minReward Least reward above the cost.
    /// @param minProfitRatio Least reward above the cost, as a share of the cost.
    /// @param maxReward Most a keeper gets in cash for one liquidation.
    /// @param maxRewardRatio Most of the closed part's margin that goes to the keeper in cash.
    /// @param keeperShare The keeper's part of the penalty; the fund gets the rest. A bankrupt's goes all to the
    /// keeper.
    /// @param wholeBelow Positions worth this or less are closed whole.
    /// @param partialRatio Share of all the account's notional that one partial liquidation may close.
    /// @param criticalRatio Below this share of the maintenance margin a position is closed whole.
    /// @param maxMarkets Most markets a cross account may hold.
    /// @param gateS How long nobody withdraws after an account with negative equity was seen.
    /// @param adl Whether winners are deleveraged before a loss is socialized.
    struct Parameters {
        uint128 executionCost;
        uint128 minReward;
        uint128 maxReward;
        uint128 wholeBelow;
        uint64 minProfitRatio;
        uint64 maxRewardRatio;
        uint64 keeperShare;
        uint64 partialRatio;
        uint64 criticalRatio;
        uint32 gateS;
        uint8 maxMarkets;
        bool adl;
    }

    /// @notice What one market goes by.
    /// @param feed Answers `decimals` and `latestRoundData` as a Chainlink aggregator does; in units of the collateral.
    /// @param maxAgeS Oldest answer accepted.
    /// @param skewScale Size at which the fill price is twice the mark.
    /// @param minMargin Added to both margins of a position.
    /// @param marginSlope Growth of the initial ratio with size/skewScale; zero for a flat margin.
    /// @param minInitialRatio Initial ratio of an infinitely small position.
    /// @param maintenanceScalar Maintenance ratio over initial ratio.
    /// @param makerFee Fee on what shrinks the skew.
    /// @param takerFee Fee on what grows the skew.
    /// @param maxFundingVelocity Most the daily funding rate changes in a day.
    /// @param penaltyRatio Penalty on what is closed by a liquidation.
    /// @param windowMultiplier Scales what the house takes over in a window; zero for no limit.
    /// @param maxPd Above this |skew|/skewScale nothing is taken over beyond the window's limit.
    /// @param windowS Length of the window.
    struct MarketParameters {
        address feed;
        uint32 maxAgeS;
        uint32 windowS;
        uint128 skewScale;
        uint128 minMargin;
        uint64 marginSlope;
        uint64 minInitialRatio;
        uint64 maintenanceScalar;
        uint64 makerFee;
        uint64 takerFee;
        uint64 maxFundingVelocity;
        uint64 penaltyRatio;
        uint64 windowMultiplier;
        uint64 maxPd;
    }

    /// @notice A market as last written.
    /// @param longSize Sum of the traders' longs; the house holds `shortSize - longSize`.
    /// @param shortSize Sum of the traders' shorts, positive.
    /// @param rate Daily funding rate; positive when longs pay.
    /// @param longIndex What one unit long has owed since the beginning: funding and socialized loss.
    /// @param shortIndex The same of one unit short.
    /// @param updatedAt When the indices were written.
    /// @param windowStart When the current window of liquidations began.
    /// @param windowUsed Size the house took over in it.
    /// @param lastTakenBlock Block of the last such liquidation.
    struct MarketState {
        uint128 longSize;
        uint128 shortSize;
        int128 rate;
        int128 longIndex;
        int128 shortIndex;
        uint40 updatedAt;
        uint40 windowStart;
        uint64 lastTakenBlock;
        uint128 windowUsed;
    }

    /// @notice A market now: mark, funding rate, and the indices brought up to this second.
    struct Live {
        uint256 price;
        int256 rate;
        int256 longIndex;
        int256 shortIndex;
    }

    /// @notice An account. Account 0 is the house.
    /// @param owner Who trades and withdraws.
    /// @param isolated Whether it holds one market at most.
    /// @param flagged Frozen until it is healthy again.
    /// @param cut Whether its last liquidation was cut short by the window: the next one carries no share of the
    /// penalty.
    /// @param collateral Deposits and realized results; below zero it is a debt.
    /// @param markets Bit i is set while it has a position in market i.
    struct Account {
        address owner;
        bool isolated;
        bool flagged;
        bool cut;
        int128 collateral;
        uint256 markets;
    }

    /// @notice A position.
    /// @param size Positive long, negative short.
    /// @param cost What was paid for it: size times average entry price.
    /// @param index The side's index when it was last settled.
    /// @param slot Its place among the market's holders.
    struct Position {
        int128 size;
        int128 cost;
        int128 index;
        uint64 slot;
    }

    /// @notice An account judged at the marks of now.
    /// @param equity Collateral, unrealized results and pending funding, rounded down.
    /// @param notional Sum of |size| times mark, rounded up.
    /// @param initial Initial margin.
    /// @param maintenance Maintenance margin.
    /// @param required Maintenance margin and possible rewards; liquidatable below it. For the house the maintenance
    /// margin alone.
    struct Assessment {
        int256 equity;
        uint256 notional;
        uint256 initial;
        uint256 maintenance;
        uint256 required;
    }

    /// @notice What a liquidation would do now.
    /// @param price The mark at which it closes.
    /// @param liquidatable Size the tiers allow; zero for a healthy account.
    /// @param size Size this liquidation closes.
    /// @param charge What the account pays.
    /// @param reward What the keeper gets: cash in whole raw units, or a discount credited to the heir.
    /// @param toFund The rest of the charge.
    /// @param fromFund What the fund pays when equity is negative: the deficit, and the reward.
    /// @param missing What the fund lacks to cover the deficit; the account must then be deleveraged.
    struct Quote {
        uint256 price;
        uint256 liquidatable;
        uint256 size;
        uint256 charge;
        uint256 reward;
        uint256 toFund;
        uint256 fromFund;
        uint256 missing;
    }

    /* ERRORS */

    /// @notice Only the owner may do this.
    error NotOwner(address caller);

    /// @notice Only the guardian or the owner may do this.
    error NotGuardian(address caller);

    /// @notice Only the account's owner may do this.
    error NotAccountOwner(uint256 account, address caller);

    /// @notice There is no such account.
    error UnknownAccount(uint256 account);

    /// @notice There is no such market.
    error UnknownMarket(uint256 market);

    /// @notice The named parameter is out of its range.
    error InvalidParameter(bytes32 name);

    /// @notice A number does not fit where it is kept.
    error Overflow();

    /// @notice A call is under way.
    error Reentered();

    /// @notice An amount or size of zero.
    error AmountZero();

    /// @notice The token did not move, or moved another amount: tokens with a fee on transfer are refused.
    error TransferFailed(uint256 amount, uint256 moved);

    /// @notice The feed's answer is not positive, from the future, or too old.
    error StaleMark(uint256 market, int256 answer, uint256 updatedAt);

    /// @notice Opening is paused; what reduces a position is not.
    error OpenIsPaused();

    /// @notice Liquidation is paused.
    error LiquidationIsPaused();

    /// @notice The account is frozen.
    error AccountIsFlagged(uint256 account);

    /// @notice The account is not frozen.
    error NotFlagged(uint256 account);

    /// @notice The account is frozen already.
    error AlreadyFlagged(uint256 account);

    /// @notice The fill price is beyond the limit.
    error PriceLimit(uint256 fill, uint256 limit);

    /// @notice The account would be short of margin.
    error MarginTooLow(uint256 account, int256 equity, uint256 required);

    /// @notice The account would hold more markets than it may.
    error TooManyMarkets(uint256 account);

    /// @notice More than the account can withdraw.
    error NotWithdrawable(uint256 account, uint256 amount, uint256 most);

    /// @notice The account still holds positions, in these markets.
    error PositionsOpen(uint256 account, uint256 markets);

    /// @notice An account with negative equity was seen; nobody withdraws until then.
    error WithdrawalsGated(uint256 until);

    /// @notice The account is healthy, or holds nothing in this market.
    error NotLiquidatable(uint256 account, int256 equity, uint256 required);

    /// @notice The window is used up.
    error RateLimited(uint256 market);

    /// @notice The fund cannot cover the deficit: deleverage the account.
    error FundShort(uint256 deficit, uint256 fund);

    /// @notice The fund covers the account: liquidate it. The house: it has its maintenance margin.
    error NotBankrupt(uint256 account);

    /// @notice No winner is left on the other side, and no loss to socialize.
    error NobodyToDeleverage(uint256 account, uint256 market);

    /// @notice The heir is the house, frozen, or the liquidated account.
    error InvalidHeir(uint256 heir);

    /* EVENTS */

    event OwnerSet(address indexed newOwner);
    event GuardianSet(address indexed newGuardian);
    event ParametersSet(Parameters parameters);
    event MarketSet(uint256 indexed market, MarketParameters parameters);
    event PausesSet(bool openPaused, bool liquidationPaused);

    event AccountCreated(uint256 indexed account, address indexed owner, bool isolated);
    event Deposited(uint256 indexed account, uint256 amount, int256 collateral);
    event Withdrawn(uint256 indexed account, uint256 amount, int256 collateral);
    event FundGrown(address indexed by, uint256 amount, uint256 fund);
    event FeesCollected(uint256 amount, uint256 fees);

    /// @notice A market's funding was brought up to date.
    event Accrued(uint256 indexed market, uint256 price, int256 rate, int256 longIndex, int256 shortIndex);

    /// @notice A position and its account's collateral are now these; emitted for every position a call touches, the
    /// house's too.
    event Modified(
        uint256 indexed account, uint256 indexed market, int256 sizeDelta, int256 size, int256 cost, int256 collateral
    );

    /// @notice A trade with the house.
    event Traded(uint256 indexed account, uint256 indexed market, int256 sizeDelta, uint256 fill, uint256 fee);

    /// @notice The account is frozen.
    event Flagged(uint256 indexed account, address indexed by, int256 equity, uint256 required);

    /// @notice The account is free again.
    event Unflagged(uint256 indexed account);

    /// @notice A part of a position went to the house (heir 0) or to an heir.
    event Liquidated(
        uint256 indexed account,
        uint256 indexed market,
        address indexed keeper,
        uint256 heir,
        int256 sizeDelta,
        Quote quote
    );

    /// @notice An account's equity was negative, and this is how much of it the fund paid.
    event BadDebt(uint256 indexed account, uint256 deficit, uint256 fromFund);

    /// @notice A winner's position was closed against a bankrupt's, at the mark less this loss.
    event Deleveraged(
        uint256 indexed account, uint256 indexed market, uint256 indexed winner, uint256 size, uint256 loss
    );

    /// @notice A loss was laid on every unit of the other side.
    event Socialized(uint256 indexed account, uint256 indexed market, uint256 loss, uint256 perUnit);

    /// @notice Nobody withdraws until then.
    event WithdrawalsGatedUntil(uint256 until);

    /* MONEY */

    /// @notice Opens an account for the caller.
    /// @param isolated Whether it may hold one market only.
    function createAccount(bool isolated) external returns (uint256 account);

    /// @notice Pays into any account, whose owner's it is from then on; the house's is the exchange's owner.
    function deposit(uint256 account, uint256 amount) external;

    /// @notice Pays into the caller's own newest account, which is opened, for several markets, where there is none.
    function payIn(uint256 amount) external returns (uint256 account);

    /// @notice Pays out of the caller's account: collateral that is neither margin nor debt, and never unrealized
    /// gains.
    function withdraw(uint256 account, uint256 amount, address to) external;

    /// @notice Pays the caller all that its account has, which must hold no position.
    function withdrawAll(uint256 account) external returns (uint256 amount);

    /// @notice Pays into the insurance fund.
    function growFund(uint256 amount) external;

    /// @notice Pays out trading fees; only the owner, and not while withdrawals are gated.
    function collectFees(uint256 amount, address to) external;

    /* TRADING */

    /// @notice Trades with the house at the mark moved by the skew. The house must have margin for what grows the skew,
    /// and must not owe more than it has for any trade.
    /// @param sizeDelta Positive buys, negative sells.
    /// @param limit Worst fill price taken: the most for a buy, the least for a sale.
    function trade(uint256 account, uint256 market, int256 sizeDelta, uint256 limit) external returns (uint256 fill);

    /* LIQUIDATION */

    /// @notice Freezes a liquidatable account: it neither trades nor withdraws. With negative equity, withdrawals of
    /// everybody are gated, and again each time it is called.
    function flag(uint256 account) external;

    /// @notice Frees a frozen account that is healthy again.
    function unflag(uint256 account) external;

    /// @notice Closes as much of a position as tiers and window allow, against the house at the mark; the caller gets
    /// the reward in cash.
    function liquidate(uint256 account, uint256 market) external returns (Quote memory);

    /// @notice Moves up to `size` of a position to the caller's own account at the mark, with a discount. The heir must
    /// have the margin.
    function inherit(uint256 account, uint256 market, uint256 size, uint256 heir) external returns (Quote memory);

    /// @notice Closes a position of an account whose deficit the fund cannot cover: first the fund pays what it has,
    /// then winners on the other side are closed against it at its bankruptcy price, and when none is left the house
    /// takes the rest and what is still missing is laid on every unit of the other side. The house below its
    /// maintenance margin is deleveraged the same way, until it has it again. Pays nothing: while the loss is open
    /// nobody can withdraw.
    /// @param most How many holders to walk past, from a random one on; a loss is socialized only by a call that walked
    /// past all.
    function deleverage(uint256 account, uint256 market, uint256 most) external;

    /* SETTINGS */

    /// @notice Hands the settings and the house over; only the owner, as all settings.
    function setOwner(address newOwner) external;

    /// @notice Names who may pause.
    function setGuardian(address newGuardian) external;

    /// @notice Changes what the whole exchange goes by.
    function setParameters(Parameters calldata set) external;

    /// @notice Changes a market, or adds one when `market` equals `marketCount()`.
    function setMarket(uint256 market, MarketParameters calldata set) external;

    /// @notice Sets both pause flags; the guardian can only pause, the owner also unpause.
    function setPauses(bool open, bool liquidation) external;

    /* VIEWS */

    /// @notice The house's account number, 0.
    function HOUSE() external view returns (uint256);

    /// @notice Stands for the caller's newest account wherever it must be the caller's own. Who opens an account and goes
    /// on in the same transaction cannot know its number: somebody else may open one first.
    function NEWEST() external view returns (uint256);

    /// @notice The collateral.
    function TOKEN() external view returns (address);

    /// @notice Money per raw unit of the token.
    function SCALE() external view returns (uint256);

    function owner() external view returns (address);
    function guardian() external view returns (address);
    function openPaused() external view returns (bool);
    function liquidationPaused() external view returns (bool);

    /// @notice The insurance fund.
    function fund() external view returns (uint256);

    /// @notice Trading fees not yet collected.
    function fees() external view returns (uint256);

    /// @notice Until when nobody withdraws, in seconds.
    function gatedUntil() external view returns (uint256);

    /// @notice Accounts are numbered from 0, the house, to one less than this.
    function accountCount() external view returns (uint256);

    /// @notice Markets are numbered from 0 to one less than this.
    function marketCount() external view returns (uint256);

    function parameters() external view returns (Parameters memory);
    function parametersOf(uint256 market) external view returns (MarketParameters memory);
    function stateOf(uint256 market) external view returns (MarketState memory);

    /// @notice Reverts on a stale mark.
    function liveOf(uint256 market) external view returns (Live memory);

    function accountOf(uint256 account) external view returns (Account memory);
    function holding(uint256 account, uint256 market) external view returns (Position memory);

    /// @notice The account that somebody opened last; 0 for none.
    function newestOf(address creator) external view returns (uint256);

    /// @notice A page of accounts from number `from` on; shorter than `count` at the end.
    function accounts(uint256 from, uint256 count) external view returns (Account[] memory);

    /// @notice A page of a market's holders without the house; their order changes when one closes.
    function holders(uint256 market, uint256 from, uint256 count) external view returns (uint256[] memory);

    /// @notice Judges an account at the marks of now.
    function assess(uint256 account) external view returns (Assessment memory);

    /// @notice Size the house would take over now; the maximum without a limit.
    function capacityOf(uint256 market) external view returns (uint256);

    /// @notice Fill price and fee of a trade.
    function quoteTrade(uint256 market, int256 sizeDelta) external view returns (uint256 fill, uint256 fee);

    /// @notice What `liquidate` would do.
    function quoteLiquidation(uint256 account, uint256 market) external view returns (Quote memory);

    /// @notice What `inherit` would do, the heir's margin aside.
    function quoteInheritance(uint256 account, uint256 market, uint256 size) external view returns (Quote memory);
}
