// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title ILiquidator
/// @notice Carries out one liquidation plan atomically: flash loan, protocol calls, swaps, repayment, one end check,
/// everything to the treasury. Holds nothing between transactions.
interface ILiquidator {
    /* TYPES */

    /// @notice How a flash source lends: an Aave v3 pool, Morpho Blue, or one Uniswap v3 pool.
    enum FlashKind {
        NONE,
        AAVE_V3,
        MORPHO,
        UNISWAP_V3
    }

    /// @notice How a venue swaps.
    enum VenueKind {
        NONE,
        UNISWAP_V3,
        UNISWAP_V2
    }

    /// @notice The USD feed of a token. Fits one storage slot.
    /// @param feed Chainlink-style aggregator; zero when the token has none.
    /// @param maxAgeS Oldest answer accepted, in seconds.
    /// @param tokenDecimals Decimals of the token, read when the feed was set.
    /// @param feedDecimals Decimals of the feed's answer, read when the feed was set.
    struct Feed {
        address feed;
        uint32 maxAgeS;
        uint8 tokenDecimals;
        uint8 feedDecimals;
    }

    /// @notice One call to a protocol.
    /// @param target Allow-listed together with the selector of `data`.
    /// @param approveToken Token approved to the target for this call only; zero address for none. Must be in the
    /// plan's tokens.
    /// @param approveAmount Raw amount approved, exactly; zeroed after the call.
    /// @param data Selector and arguments.
    /// @param gasLimit Gas of a call that may fail: it gets just as much, and where it reverts the plan goes on without
    /// it. Zero for a call that must not fail, as in protocols that are settled jointly; it gets what there is.
    struct Call {
        address target;
        address approveToken;
        uint256 approveAmount;
        bytes data;
        uint256 gasLimit;
    }

    /// @notice One swap leg. The recipient is always this contract and the deadline always now.
    /// @param router Allow-listed venue.
    /// @param path For v3 a packed path, token in first; for exact output token out first, as the router wants it. For
    /// v2 the tokens' addresses on end, token in first always.
    /// @param exactOut Whether `amount` is what comes out.
    /// @param amount Exact input: raw amount in, or the maximum for all that is held beyond the flash debt in that
    /// token.
    /// Exact output: raw amount out, or the maximum for what is missing to the flash debt in that token.
    /// A leg whose maximum resolves to zero is skipped.
    /// @param limit Exact input: least amount out. Exact output: most amount in.
    struct Swap {
        address router;
        bytes path;
        bool exactOut;
        uint256 amount;
        uint256 limit;
    }

    /// @notice One liquidation.
    /// @param planId Free identifier, only logged.
    /// @param flashSource Allow-listed flash source; zero address when the calls need no capital.
    /// @param flashToken Token borrowed; ignored without a flash source.
    /// @param flashAmount Raw amount borrowed; must be zero without a flash source. Zero from Morpho means that nothing
    /// is borrowed: the plan's one call is Morpho's own `liquidate`, which is paid in `flashToken` from what it seized.
    /// Its approval, its gas limit and the data it ends with are not used.
    /// @param calls Protocol calls, at least one, all of one protocol. One at least must succeed.
    /// @param swaps Swap legs, in order, after all calls.
    /// @param tokens Every token touched, each once, each with a feed.
    /// @param profitToken Token the profit is measured in.
    /// @param minProfit Least raw amount of the profit token that must reach the treasury.
    /// @param globalEpoch Epoch of the global pause scope the plan was built under.
    /// @param protocolEpoch Epoch of the protocol's pause scope the plan was built under.
    /// @param lastBlock Last block in which the plan may execute.
    struct Plan {
        bytes32 planId;
        address flashSource;
        address flashToken;
        uint256 flashAmount;
        Call[] calls;
        Swap[] swaps;
        address[] tokens;
        address profitToken;
        uint256 minProfit;
        uint64 globalEpoch;
        uint64 protocolEpoch;
        uint64 lastBlock;
    }

    /* ERRORS */

    /// @notice An address given to the constructor or a setter is zero, or lacks the code it must have.
    error InvalidAddress(address account);

    /// @notice Only the Safe may change settings.
    error NotSafe(address caller);

    /// @notice Only an operator may execute.
    error NotOperator(address caller);

    /// @notice An execution or a sweep is under way.
    error Reentered();

    /// @notice The slippage is above the hard limit.
    error SlippageTooHigh(uint16 maxSlippageBps, uint16 limit);

    /// @notice Decimals of a token and its feed add up to more than 36.
    error DecimalsTooHigh(uint8 tokenDecimals, uint8 feedDecimals);

    /// @notice The age of a feed's answer must be limited.
    error MaxAgeZero(address token);

    /// @notice The plan's last block has passed.
    error PlanExpired(uint64 lastBlock, uint256 blockNumber);

    /// @notice The plan has no protocol call.
    error NoCalls();

    /// @notice The target is not allow-listed with this selector.
    error TargetNotAllowed(address target, bytes4 selector);

    /// @notice The calls belong to different protocols.
    error MixedProtocols(bytes32 first, bytes32 other);

    /// @notice The flash source is not allow-listed.
    error FlashSourceNotAllowed(address source);

    /// @notice An amount to borrow was given without a flash source.
    error FlashWithoutSource(uint256 flashAmount);

    /// @notice The router is not allow-listed.
    error RouterNotAllowed(address router);

    /// @notice The token is not in the plan's tokens.
    error TokenNotListed(address token);

    /// @notice The token stands twice in the plan's tokens.
    error TokenListedTwice(address token);

    /// @notice The token has no feed.
    error FeedMissing(address token);

    /// @notice The feed's answer is not positive, too old, or dated in the future.
    error StaleFeed(address token, uint256 updatedAt);

    /// @notice Nothing is borrowed from the source, and the plan is not one liquidation of its own.
    error FlashWithoutAmount(address source);

    /// @notice A callback came from another source or initiator, by another function, with other terms, or a second
    /// time.
    error CallbackRefused(address caller);

    /// @notice The flash source returned without calling back.
    error FlashNotGiven(address source);

    /// @notice The protocol call reverted.
    error CallFailed(uint256 index, bytes reason);

    /// @notice A call that may fail belongs to a protocol whose calls are settled jointly.
    error MustNotFail(uint256 index);

    /// @notice Too little gas is left to give a call that may fail its own.
    error GasTooLow(uint256 gasLeft, uint256 gasLimit);

    /// @notice All calls failed.
    error NothingDone();

    /// @notice The swap path is no path of the venue's form between two different tokens.
    error InvalidPath(uint256 index);

    /// @notice The swap gave less, or took more, than its limit.
    error SwapLimit(uint256 index, uint256 actual, uint256 limit);

    /// @notice More was spent of a token, or is owed to the flash source, than the plan brought in.
    error Overspent(address token, uint256 held, uint256 needed);

    /// @notice A token transfer failed.
    error TransferFailed(address token, address to, uint256 amount);

    /// @notice A token approval failed.
    error ApproveFailed(address token, address spender, uint256 amount);

    /// @notice Less than the plan's minimum of the profit token reached the treasury.
    error ProfitBelowMinimum(uint256 actual, uint256 minimum);

    /// @notice What reached the treasury is worth less than the end check requires; USD scaled by 1e36.
    error SlippageExceeded(uint256 actual, uint256 required);

    /* EVENTS */

    /// @notice A plan was carried out. `profit` is what the treasury gained of the profit token, raw, measured inside
    /// the call.
    event Liquidated(
        bytes32 indexed planId,
        bytes32 indexed protocol,
        address indexed profitToken,
        uint256 profit,
        address operator
    );

    /// @notice A call that may fail did; `reason` is the beginning of what it reverted with, empty when it ran out of
    /// gas.
    event CallSkipped(bytes32 indexed planId, uint256 index, bytes reason);

    /// @notice A balance that is no plan's profit went to the treasury; the zero address stands for the native coin.
    event Swept(address indexed token, uint256 amount);

    event OperatorSet(address indexed operator, bool enabled);
    event TargetSet(address indexed target, bytes4 indexed selector, bytes32 indexed protocol);
    event SettledJointlySet(bytes32 indexed protocol, bool jointly);
    event FlashSourceSet(address indexed source, FlashKind kind);
    event VenueSet(address indexed router, VenueKind kind);
    event FeedSet(address indexed token, address indexed feed, uint32 maxAgeS);
    event MaxSlippageSet(uint16 maxSlippageBps);

    /* EXECUTION */

    /// @notice Carries out a plan; only an operator, only while the pause guard lets the plan's protocol run at the
    /// plan's epochs.
    /// @dev The end check: the treasury receives at least `minProfit` of the profit token, and tokens worth at least
    /// Σ over calls of max(0, gained − paid − maxSlippageBps of gained), at the feeds' prices; swap costs and the flash
    /// premium both come out of the slippage. Each call stands for itself, so that neither a loss-making call (an
    /// attacker's own market) nor an oversized flash loan nor any number of swap legs excuses a cent: whoever holds the
    /// operator key can lose the treasury at most `maxSlippageBps` of what was seized. Only tokens that the calls and
    /// the routers
    /// brought in count; a balance given from elsewhere during the call goes to the treasury uncounted.
    /// @return profit What the treasury gained of the profit token, raw.
    function execute(Plan calldata plan) external returns (uint256 profit);

    /// @notice Sends all balances of the tokens to the treasury; by anyone, also while paused.
    /// @param tokens Tokens; the zero address stands for the native coin.
    function sweep(address[] calldata tokens) external;

    /* SETTINGS */

    /// @notice Enables or disables an operator; only the Safe.
    function setOperator(address operator, bool enabled) external;

    /// @notice Allows calls of a selector on a target on behalf of a protocol; zero protocol removes; only the Safe.
    /// @dev Never allow a selector that sends anything this contract owns, in tokens or inside the protocol, to an
    /// address taken from its arguments, nor one that carries further calls in its arguments (a multicall), nor one
    /// that goes on where a call of its own fails that matters to us: a plan can give it so little gas that it does.
    function setTarget(address target, bytes4 selector, bytes32 protocol) external;

    /// @notice Declares whether a protocol's calls pay in one call and gain in another (margin deposited and withdrawn
    /// around an inherited position), so that the end check nets all calls of a plan together; only the Safe.
    /// @dev Netting lets a loss in one call eat the gain of another. Leave it off for protocols where anybody can
    /// create a market.
    function setSettledJointly(bytes32 protocol, bool jointly) external;

    /// @notice Allows a flash source, or removes it with kind NONE; only the Safe.
    /// @dev What it says of its premium is believed and comes out of the slippage. Of Uniswap v3 only a pool that the
    /// factory made; Morpho's liquidations can be paid afterwards if it is listed and so is its `liquidate`.
    function setFlashSource(address source, FlashKind kind) external;

    /// @notice Allows a swap router, or removes it with kind NONE; only the Safe.
    function setVenue(address router, VenueKind kind) external;

    /// @notice Sets the USD feed of a token, or removes it with the zero address; only the Safe.
    function setFeed(address token, address feed, uint32 maxAgeS) external;

    /// @notice Sets how much of what was seized a plan may lose against the feeds, at most 1000 basis points; only the
    /// Safe.
    /// @dev Keep it well below the liquidation bonus: a bonus smaller than the slippage is not protected at all.
    function setMaxSlippageBps(uint16 bps) external;

    /* VIEWS */

    function SAFE() external view returns (address);
    function TREASURY() external view returns (address);
    function GUARD() external view returns (address);
    function isOperator(address account) external view returns (bool);

    /// @notice The protocol a target and selector are allowed for; zero when they are not.
    function protocolOf(address target, bytes4 selector) external view returns (bytes32);

    function settledJointly(bytes32 protocol) external view returns (bool);
    function flashKindOf(address source) external view returns (FlashKind);
    function venueKindOf(address router) external view returns (VenueKind);

    /// @notice The feed of a token; all zero when it has none.
    function feedOf(address token) external view returns (Feed memory);

    function maxSlippageBps() external view returns (uint16);
}
