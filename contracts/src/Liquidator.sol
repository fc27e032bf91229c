// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAaveV3FlashReceiver, IAaveV3FlashSource} from "./interfaces/IAaveV3Flash.sol";
import {IAggregator} from "./interfaces/IAggregator.sol";
import {IERC20} from "./interfaces/IERC20.sol";
import {ILiquidator} from "./interfaces/ILiquidator.sol";
import {IMorpho, IMorphoCallbacks} from "./interfaces/IMorpho.sol";
import {IPauseGuard} from "./interfaces/IPauseGuard.sol";
import {IUniswapV2Router} from "./interfaces/IUniswapV2Router.sol";
import {IUniswapV3FlashReceiver, IUniswapV3FlashSource} from "./interfaces/IUniswapV3Flash.sol";
import {IUniswapV3Router} from "./interfaces/IUniswapV3Router.sol";

/// @title Liquidator
/// @notice Makes a stolen operator key worthless: what a plan seizes reaches the treasury at the feeds' value, less the
/// slippage the Safe allows, or nothing happens.
contract Liquidator is ILiquidator, IAaveV3FlashReceiver, IMorphoCallbacks, IUniswapV3FlashReceiver {
    /* TYPES */

    /// @dev The books of one execution; the arrays run along the plan's tokens.
    struct Books {
        // USD value of one raw unit, scaled by 1e36.
        uint256[] prices;
        // Raw amounts that the flash loan, the calls and the routers brought in and that are still here. Never more
        // than the balance: what anybody else gives is in no book, so it can neither be sold nor pass for proceeds.
        uint256[] held;
        // Raw amounts to return to the flash source.
        uint256[] owed;
    }

    /* CONSTANTS */

    uint16 private constant MAX_SLIPPAGE_LIMIT_BPS = 1000;
    uint256 private constant BPS = 10_000;

    /// @dev Raw amount times feed answer times 10 ** (36 - both decimals) is exact, so valuing never rounds.
    uint256 private constant VALUE_DECIMALS = 36;

    uint256 private constant ADDRESS_LENGTH = 20;
    uint256 private constant V3_HOP_LENGTH = 23;

    /// @dev Bytes kept of why a call failed that may.
    uint256 private constant MAX_REASON_LENGTH = 256;

    /// @dev More gas than the EVM takes between the look at what is left and the call itself.
    uint256 private constant CALL_OVERHEAD_GAS = 10_000;

    /* IMMUTABLES */

    /// @inheritdoc ILiquidator
    address public immutable SAFE;

    /// @inheritdoc ILiquidator
    address public immutable TREASURY;

    /// @inheritdoc ILiquidator
    address public immutable GUARD;

    /* STORAGE */

    /// @inheritdoc ILiquidator
    mapping(address account => bool) public isOperator;

    /// @inheritdoc ILiquidator
    mapping(address target => mapping(bytes4 selector => bytes32)) public protocolOf;

    /// @inheritdoc ILiquidator
    mapping(bytes32 protocol => bool) public settledJointly;

    /// @inheritdoc ILiquidator
    mapping(address source => FlashKind) public flashKindOf;

    /// @inheritdoc ILiquidator
    mapping(address router => VenueKind) public venueKindOf;

    mapping(address token => Feed) internal _feeds;

    /// @inheritdoc ILiquidator
    uint16 public maxSlippageBps;

    /* TRANSIENT STORAGE */

    bool internal transient _entered;

    /// @dev Who is to call back, by which function and with what (`_callback`); zero before and once it has.
    bytes32 internal transient _awaited;

    uint256 internal transient _profit;

    /* CONSTRUCTOR */

    /// @param safe Changes the settings.
    /// @param treasury Receives everything.
    /// @param guard The PauseGuard; must have code.
    constructor(address safe, address treasury, address guard) {
        if (safe == address(0)) revert InvalidAddress(safe);
        if (treasury == address(0)) revert InvalidAddress(treasury);
        if (guard.code.length == 0) revert InvalidAddress(guard);
        SAFE = safe;
        TREASURY = treasury;
        GUARD = guard;
    }

    /// @dev Protocols may pay in the native coin; `sweep` brings it to the treasury.
    receive() external payable {}

    /* MODIFIERS */

    modifier onlySafe() {
        if (msg.sender != SAFE) revert NotSafe(msg.sender);
        _;
    }

    modifier nonReentrant() {
        if (_entered) revert Reentered();
        _entered = true;
        _;
        _entered = false;
    }

    /* EXECUTION */

    /// @inheritdoc ILiquidator
    function execute(Plan calldata plan) external nonReentrant returns (uint256 profit) {
        if (!isOperator[msg.sender]) revert NotOperator(msg.sender);
        if (block.number > plan.lastBlock) revert PlanExpired(plan.lastBlock, block.number);
        bytes32 protocol = _requireOneProtocol(plan.calls);
        IPauseGuard(GUARD).requireRunning(protocol, plan.globalEpoch, plan.protocolEpoch);
        _requireListed(plan);

        // What lies here already belongs to the treasury and is no proceeds of this plan.
        _sweep(plan.tokens);
        profit = plan.flashSource == address(0) ? _run(plan, 0) : _borrow(plan);
        // What others gave meanwhile, or the flash source left.
        _sweep(plan.tokens);
        emit Liquidated(plan.planId, protocol, plan.profitToken, profit, msg.sender);
    }

    /// @inheritdoc ILiquidator
    function sweep(address[] calldata tokens) external nonReentrant {
        _sweep(tokens);
    }

    /* FUNDING */

    /// @dev The source calls back by the function of its kind, which runs the plan and provides for the repayment.
    function _borrow(Plan calldata plan) internal returns (uint256) {
        (address source, address token, uint256 amount) = (plan.flashSource, plan.flashToken, plan.flashAmount);
        FlashKind kind = flashKindOf[source];
        bytes memory params = abi.encode(plan);
        if (kind == FlashKind.AAVE_V3) {
            _awaited = _callback(source, this.executeOperation.selector, keccak256(params));
            IAaveV3FlashSource(source).flashLoanSimple(address(this), token, amount, params, 0);
        } else if (kind == FlashKind.UNISWAP_V3) {
            _awaited = _callback(source, this.uniswapV3FlashCallback.selector, keccak256(params));
            (uint256 amount0, uint256 amount1) =
                token == IUniswapV3FlashSource(source).token0() ? (amount, uint256(0)) : (uint256(0), amount);
            IUniswapV3FlashSource(source).flash(address(this), amount0, amount1, params);
        } else if (amount != 0) {
            _awaited = _callback(source, this.onMorphoFlashLoan.selector, keccak256(params));
            IMorpho(source).flashLoan(token, amount, params);
        } else {
            _awaited = _callback(source, this.onMorphoLiquidate.selector, keccak256(params));
            _liquidateFirst(plan.calls, source, params);
        }
        if (_awaited != 0) revert FlashNotGiven(source);
        _approve(token, source, 0);
        return _profit;
    }

    /// @dev The one call of a plan that borrows nothing from Morpho: what it seizes is sold before it is paid for.
    function _liquidateFirst(Call[] calldata calls, address source, bytes memory params) internal {
        bytes calldata data = calls[0].data;
        if (calls.length != 1 || calls[0].target != source || bytes4(data) != IMorpho.liquidate.selector) {
            revert FlashWithoutAmount(source);
        }
        (IMorpho.MarketParams memory market, address borrower, uint256 seizedAssets, uint256 repaidShares,) =
            abi.decode(data[4:], (IMorpho.MarketParams, address, uint256, uint256, bytes));
        IMorpho(source).liquidate(market, borrower, seizedAssets, repaidShares, params);
    }

    /// @dev Lets in the awaited source by the awaited function with the plan it was given, once.
    function _answer(bytes calldata params) internal returns (Plan memory) {
        if (_awaited != _callback(msg.sender, msg.sig, keccak256(params))) revert CallbackRefused(msg.sender);
        _awaited = 0;
        return abi.decode(params, (Plan));
    }

    function _callback(address source, bytes4 selector, bytes32 paramsHash) internal pure returns (bytes32) {
        return keccak256(abi.encode(source, selector, paramsHash));
    }

    /// @notice The callback of an Aave v3 pool.
    /// @inheritdoc IAaveV3FlashReceiver
    function executeOperation(
        address asset,
        uint256 amount,
        uint256 premium,
        address initiator,
        bytes calldata params
    ) external returns (bool) {
        Plan memory plan = _answer(params);
        if (initiator != address(this) || asset != plan.flashToken || amount != plan.flashAmount) {
            revert CallbackRefused(msg.sender);
        }
        _profit = _run(plan, premium);
        _approve(asset, msg.sender, amount + premium);
        return true;
    }

    /// @notice The callback of a Uniswap v3 pool. Of the two fees one is for nothing and zero.
    /// @inheritdoc IUniswapV3FlashReceiver
    function uniswapV3FlashCallback(uint256 fee0, uint256 fee1, bytes calldata params) external {
        Plan memory plan = _answer(params);
        uint256 premium = fee0 + fee1;
        _profit = _run(plan, premium);
        _return(plan.flashToken, plan.flashAmount + premium);
    }

    /// @notice The callback of Morpho's flash loan.
    /// @inheritdoc IMorphoCallbacks
    function onMorphoFlashLoan(uint256 assets, bytes calldata params) external {
        Plan memory plan = _answer(params);
        if (assets != plan.flashAmount) revert CallbackRefused(msg.sender);
        _profit = _run(plan, 0);
        _approve(plan.flashToken, msg.sender, assets);
    }

    /// @notice The callback of Morpho's liquidation: the collateral is here, the payment is still due.
    /// @dev Booked as if the payment had been lent, free of premium, and spent on the call: the end check is the same.
    /// @inheritdoc IMorphoCallbacks
    function onMorphoLiquidate(uint256 repaidAssets, bytes calldata params) external {
        Plan memory plan = _answer(params);
        Books memory books = _openBooks(plan, repaidAssets, 0);
        // The sweep left nothing, and nothing but the liquidation ran since.
        uint256[] memory before = new uint256[](plan.tokens.length);
        before[_indexOf(plan.tokens, plan.flashToken)] = repaidAssets;
        uint256 required = _settle(plan.tokens, books, before, _balances(plan.tokens));
        _profit = _realize(plan, books, required);
        _approve(plan.flashToken, msg.sender, repaidAssets);
    }

    /// @dev Gives the awaited source, which is calling, what it does not pull itself.
    function _return(address token, uint256 amount) internal {
        if (!_ask(token, abi.encodeCall(IERC20.transfer, (msg.sender, amount)))) {
            revert TransferFailed(token, msg.sender, amount);
        }
    }

    /* PLAN */

    /// @dev Calls, swaps, treasury, end check. What is owed to the flash source stays here, nothing else.
    function _run(Plan memory plan, uint256 premium) internal returns (uint256 profit) {
        Books memory books = _openBooks(plan, plan.flashAmount, premium);
        uint256 required = _callProtocol(plan, books);
        return _realize(plan, books, required);
    }

    /// @dev Swaps, treasury, end check.
    function _realize(Plan memory plan, Books memory books, uint256 required) internal returns (uint256 profit) {
        for (uint256 i; i < plan.swaps.length; ++i) {
            _swap(plan, books, i);
        }
        uint256 actual;
        (profit, actual) = _payTreasury(plan, books);
        if (profit < plan.minProfit) revert ProfitBelowMinimum(profit, plan.minProfit);
        if (actual < required) revert SlippageExceeded(actual, required);
    }

    /// @dev Prices are read once, before any call or swap of the plan's choice could move a feed.
    function _openBooks(Plan memory plan, uint256 lent, uint256 premium) internal view returns (Books memory books) {
        uint256 count = plan.tokens.length;
        books.prices = new uint256[](count);
        books.held = new uint256[](count);
        books.owed = new uint256[](count);
        for (uint256 i; i < count; ++i) {
            books.prices[i] = _price(plan.tokens[i]);
        }
        if (plan.flashSource != address(0)) {
            uint256 flash = _indexOf(plan.tokens, plan.flashToken);
            books.held[flash] = lent;
            books.owed[flash] = lent + premium;
        }
    }

    /* PROTOCOL CALLS */

    /// @dev Makes the protocol calls and returns the USD value the treasury must receive for them, scaled by 1e36.
    function _callProtocol(Plan memory plan, Books memory books) internal returns (uint256 required) {
        bool jointly = settledJointly[protocolOf[plan.calls[0].target][bytes4(plan.calls[0].data)]];
        uint256[] memory before = _balances(plan.tokens);
        bool anything = false;
        for (uint256 i; i < plan.calls.length; ++i) {
            if (_call(plan, i)) anything = true;
            if (jointly && i != plan.calls.length - 1) continue;
            uint256[] memory balances = _balances(plan.tokens);
            required += _settle(plan.tokens, books, before, balances);
            before = balances;
        }
        if (!anything) revert NothingDone();
    }

    /// @dev Whether the call was carried out. One that failed changed nothing, so it needs no books: what was borrowed
    /// for it is still here.
    function _call(Plan memory plan, uint256 index) internal returns (bool success) {
        Call memory call = plan.calls[index];
        if (call.approveToken != address(0)) {
            // Approving an unlisted token would let a call spend what no book and no price covers.
            _indexOf(plan.tokens, call.approveToken);
            _approve(call.approveToken, call.target, call.approveAmount);
        }
        bytes memory reason;
        if (call.gasLimit == 0) {
            (success, reason) = call.target.call(call.data);
            if (!success) revert CallFailed(index, reason);
        } else {
            (success, reason) = _callWithin(call);
            if (!success) emit CallSkipped(plan.planId, index, reason);
        }
        if (call.approveToken != address(0)) _approve(call.approveToken, call.target, 0);
    }

    /// @dev Gives a call exactly its gas or reverts: the EVM would quietly give 63/64 of what is left, and a call that
    /// starved would pass for one that the protocol refused. Neither by gas nor by the length of its reason can the
    /// callee take more.
    function _callWithin(Call memory call) internal returns (bool success, bytes memory reason) {
        (address target, uint256 gasLimit, bytes memory data) = (call.target, call.gasLimit, call.data);
        reason = new bytes(MAX_REASON_LENGTH);
        uint256 left = gasleft();
        if (left - left / 64 < gasLimit + CALL_OVERHEAD_GAS) revert GasTooLow(left, gasLimit);
        assembly ("memory-safe") {
            success := call(gasLimit, target, 0, add(data, 32), mload(data), add(reason, 32), MAX_REASON_LENGTH)
            if lt(returndatasize(), MAX_REASON_LENGTH) { mstore(reason, returndatasize()) }
        }
    }

    /// @dev Books what came and went, and returns what the treasury must receive for it: the gain less the slippage
    /// allowed on what came in, and never less than zero, so that one call's loss cannot excuse another's.
    function _settle(
        address[] memory tokens,
        Books memory books,
        uint256[] memory before,
        uint256[] memory balances
    ) internal view returns (uint256) {
        uint256 gained;
        uint256 excused;
        for (uint256 i; i < tokens.length; ++i) {
            if (balances[i] > before[i]) {
                uint256 came = balances[i] - before[i];
                books.held[i] += came;
                gained += came * books.prices[i];
            } else {
                uint256 went = before[i] - balances[i];
                books.held[i] = _minus(tokens[i], books.held[i], went);
                excused += went * books.prices[i];
            }
        }
        excused += gained * maxSlippageBps / BPS;
        return _excess(gained, excused);
    }

    /* SWAPS */

    function _swap(Plan memory plan, Books memory books, uint256 index) internal {
        Swap memory leg = plan.swaps[index];
        (uint256 from, uint256 to) = _ends(plan, index);
        uint256 amount = leg.amount;
        if (amount == type(uint256).max) {
            amount = leg.exactOut
                ? _excess(books.owed[to], books.held[to])
                : _excess(books.held[from], books.owed[from]);
        }
        (uint256 spent, uint256 got) = (0, 0);
        if (amount != 0) {
            uint256 most = leg.exactOut ? _min(leg.limit, books.held[from]) : amount;
            _minus(plan.tokens[from], books.held[from], most);
            (spent, got) = _trade(leg, plan.tokens[from], plan.tokens[to], amount, most);
        }
        if (leg.exactOut) {
            if (spent > leg.limit) revert SwapLimit(index, spent, leg.limit);
            if (got < amount) revert SwapLimit(index, got, amount);
        } else if (got < leg.limit) {
            revert SwapLimit(index, got, leg.limit);
        }
        books.held[from] = _minus(plan.tokens[from], books.held[from], spent);
        books.held[to] += got;
    }

    /// @dev Trades and returns what was spent and got: of the balances' word and the router's word the worse one, so
    /// that a payment from elsewhere during the swap cannot stand in for proceeds.
    function _trade(Swap memory leg, address tokenIn, address tokenOut, uint256 amount, uint256 most)
        internal
        returns (uint256 spent, uint256 got)
    {
        uint256 inBefore = _balance(tokenIn);
        uint256 outBefore = _balance(tokenOut);
        _approve(tokenIn, leg.router, most);
        uint256 said = venueKindOf[leg.router] == VenueKind.UNISWAP_V2
            ? _tradeV2(leg, amount, most)
            : _tradeV3(leg, amount, most);
        _approve(tokenIn, leg.router, 0);
        (spent, got) = leg.exactOut ? (said, amount) : (amount, said);
        spent = _max(spent, _excess(inBefore, _balance(tokenIn)));
        got = _min(got, _excess(_balance(tokenOut), outBefore));
    }

    /// @dev The router's word on what an exact input gave, or what an exact output took.
    function _tradeV2(Swap memory leg, uint256 amount, uint256 most) internal returns (uint256) {
        IUniswapV2Router router = IUniswapV2Router(leg.router);
        address[] memory path = new address[](leg.path.length / ADDRESS_LENGTH);
        for (uint256 i; i < path.length; ++i) {
            path[i] = _addressAt(leg.path, i * ADDRESS_LENGTH);
        }
        if (leg.exactOut) {
            return router.swapTokensForExactTokens(amount, most, path, address(this), block.timestamp)[0];
        }
        uint256[] memory amounts =
            router.swapExactTokensForTokens(amount, leg.limit, path, address(this), block.timestamp);
        return amounts[amounts.length - 1];
    }

    /// @dev The router's word on what an exact input gave, or what an exact output took.
    function _tradeV3(Swap memory leg, uint256 amount, uint256 most) internal returns (uint256) {
        IUniswapV3Router router = IUniswapV3Router(leg.router);
        return leg.exactOut
            ? router.exactOutput(
                IUniswapV3Router.ExactOutputParams(leg.path, address(this), block.timestamp, amount, most)
            )
            : router.exactInput(
                IUniswapV3Router.ExactInputParams(leg.path, address(this), block.timestamp, amount, leg.limit)
            );
    }

    /// @dev The plan's token indices of what goes in and what comes out of a leg.
    function _ends(Plan memory plan, uint256 index) internal view returns (uint256 from, uint256 to) {
        Swap memory leg = plan.swaps[index];
        VenueKind kind = venueKindOf[leg.router];
        if (kind == VenueKind.NONE) revert RouterNotAllowed(leg.router);
        uint256 hop = kind == VenueKind.UNISWAP_V2 ? ADDRESS_LENGTH : V3_HOP_LENGTH;
        uint256 length = leg.path.length;
        if (length < ADDRESS_LENGTH + hop || (length - ADDRESS_LENGTH) % hop != 0) revert InvalidPath(index);
        from = _indexOf(plan.tokens, _addressAt(leg.path, 0));
        to = _indexOf(plan.tokens, _addressAt(leg.path, length - ADDRESS_LENGTH));
        if (from == to) revert InvalidPath(index);
        if (leg.exactOut && kind == VenueKind.UNISWAP_V3) (from, to) = (to, from);
    }

    /* TREASURY */

    /// @dev Sends everything but the flash debt to the treasury. Returns the profit and the USD value, scaled by 1e36,
    /// of what arrived and is in the books. The treasury's balance is read right around each transfer, so that
    /// payments to the treasury from elsewhere during the plan do not count.
    function _payTreasury(Plan memory plan, Books memory books) internal returns (uint256 profit, uint256 value) {
        for (uint256 i; i < plan.tokens.length; ++i) {
            address token = plan.tokens[i];
            uint256 earned = _minus(token, books.held[i], books.owed[i]);
            uint256 amount = _minus(token, _balance(token), books.owed[i]);
            if (amount == 0) continue;
            uint256 treasuryBefore = IERC20(token).balanceOf(TREASURY);
            _send(token, amount);
            earned = _min(earned, IERC20(token).balanceOf(TREASURY) - treasuryBefore);
            value += earned * books.prices[i];
            if (token == plan.profitToken) profit = earned;
        }
    }

    /// @dev Sends whole balances to the treasury.
    function _sweep(address[] calldata tokens) internal {
        for (uint256 i; i < tokens.length; ++i) {
            address token = tokens[i];
            uint256 amount = token == address(0) ? address(this).balance : _balance(token);
            if (amount == 0) continue;
            _send(token, amount);
            emit Swept(token, amount);
        }
    }

    /// @dev The only place anything leaves from, but for approvals and `_return`: to the treasury.
    function _send(address token, uint256 amount) internal {
        if (amount == 0) return;
        bool success;
        if (token == address(0)) (success,) = TREASURY.call{value: amount}("");
        else success = _ask(token, abi.encodeCall(IERC20.transfer, (TREASURY, amount)));
        if (!success) revert TransferFailed(token, TREASURY, amount);
    }

    /* CHECKS */

    /// @dev The protocol comes from the Safe's allow-list, never from the operator.
    function _requireOneProtocol(Call[] calldata calls) internal view returns (bytes32 protocol) {
        if (calls.length == 0) revert NoCalls();
        for (uint256 i; i < calls.length; ++i) {
            bytes4 selector = bytes4(calls[i].data);
            bytes32 one = protocolOf[calls[i].target][selector];
            if (one == 0) revert TargetNotAllowed(calls[i].target, selector);
            if (i == 0) protocol = one;
            else if (one != protocol) revert MixedProtocols(protocol, one);
            // Half of what only makes sense together would be a loss.
            if (calls[i].gasLimit != 0 && settledJointly[protocol]) revert MustNotFail(i);
        }
    }

    function _requireListed(Plan calldata plan) internal view {
        for (uint256 i; i < plan.tokens.length; ++i) {
            address token = plan.tokens[i];
            if (_feeds[token].feed == address(0)) revert FeedMissing(token);
            for (uint256 j; j < i; ++j) {
                if (plan.tokens[j] == token) revert TokenListedTwice(token);
            }
        }
        _indexOf(plan.tokens, plan.profitToken);
        if (plan.flashSource != address(0)) {
            if (flashKindOf[plan.flashSource] == FlashKind.NONE) revert FlashSourceNotAllowed(plan.flashSource);
            _indexOf(plan.tokens, plan.flashToken);
        } else if (plan.flashAmount != 0) {
            revert FlashWithoutSource(plan.flashAmount);
        }
    }

    /// @dev USD value of one raw unit, scaled by 1e36.
    function _price(address token) internal view returns (uint256) {
        Feed memory feed = _feeds[token];
        (, int256 answer,, uint256 updatedAt,) = IAggregator(feed.feed).latestRoundData();
        if (answer <= 0 || updatedAt > block.timestamp || block.timestamp - updatedAt > feed.maxAgeS) {
            revert StaleFeed(token, updatedAt);
        }
        return uint256(answer) * 10 ** (VALUE_DECIMALS - feed.tokenDecimals - feed.feedDecimals);
    }

    /* TOKENS */

    function _balance(address token) internal view returns (uint256) {
        return IERC20(token).balanceOf(address(this));
    }

    function _balances(address[] memory tokens) internal view returns (uint256[] memory balances) {
        balances = new uint256[](tokens.length);
        for (uint256 i; i < tokens.length; ++i) {
            balances[i] = _balance(tokens[i]);
        }
    }

    /// @dev Every approval is zeroed after its use, so tokens that forbid changing a non-zero approval are content.
    function _approve(address token, address spender, uint256 amount) internal {
        if (!_ask(token, abi.encodeCall(IERC20.approve, (spender, amount)))) {
            revert ApproveFailed(token, spender, amount);
        }
    }

    /// @dev Whether a token carried out a request; some return nothing, and a missing contract would not even revert.
    function _ask(address token, bytes memory request) internal returns (bool) {
        (bool success, bytes memory answer) = token.call(request);
        if (!success) return false;
        return answer.length == 0 ? token.code.length != 0 : answer.length >= 32 && uint256(bytes32(answer)) == 1;
    }

    function _indexOf(address[] memory tokens, address token) internal pure returns (uint256) {
        for (uint256 i; i < tokens.length; ++i) {
            if (tokens[i] == token) return i;
        }
        revert TokenNotListed(token);
    }

    function _addressAt(bytes memory path, uint256 offset) internal pure returns (address found) {
        assembly ("memory-safe") {
            found := shr(96, mload(add(add(path, 32), offset)))
        }
    }

    /* ARITHMETIC */

    /// @dev Books cannot go below zero: a plan spends only what it brought in.
    function _minus(address token, uint256 held, uint256 needed) internal pure returns (uint256) {
        if (needed > held) revert Overspent(token, held, needed);
        return held - needed;
    }

    /// @dev By how much a exceeds b, else zero.
    function _excess(uint256 a, uint256 b) internal pure returns (uint256) {
        return a > b ? a - b : 0;
    }

    function _min(uint256 a, uint256 b) internal pure returns (uint256) {
        return a < b ? a : b;
    }

    function _max(uint256 a, uint256 b) internal pure returns (uint256) {
        return a > b ? a : b;
    }

    /* SETTINGS */

    /// @inheritdoc ILiquidator
    function setOperator(address operator, bool enabled) external onlySafe {
        if (operator == address(0)) revert InvalidAddress(operator);
        isOperator[operator] = enabled;
        emit OperatorSet(operator, enabled);
    }

    /// @inheritdoc ILiquidator
    function setTarget(address target, bytes4 selector, bytes32 protocol) external onlySafe {
        if (protocol != 0) _requireCode(target);
        protocolOf[target][selector] = protocol;
        emit TargetSet(target, selector, protocol);
    }

    /// @inheritdoc ILiquidator
    function setSettledJointly(bytes32 protocol, bool jointly) external onlySafe {
        settledJointly[protocol] = jointly;
        emit SettledJointlySet(protocol, jointly);
    }

    /// @inheritdoc ILiquidator
    function setFlashSource(address source, FlashKind kind) external onlySafe {
        if (kind != FlashKind.NONE) _requireCode(source);
        flashKindOf[source] = kind;
        emit FlashSourceSet(source, kind);
    }

    /// @inheritdoc ILiquidator
    function setVenue(address router, VenueKind kind) external onlySafe {
        if (kind != VenueKind.NONE) _requireCode(router);
        venueKindOf[router] = kind;
        emit VenueSet(router, kind);
    }

    /// @inheritdoc ILiquidator
    function setFeed(address token, address feed, uint32 maxAgeS) external onlySafe {
        if (feed == address(0)) {
            delete _feeds[token];
            emit FeedSet(token, feed, 0);
            return;
        }
        if (maxAgeS == 0) revert MaxAgeZero(token);
        uint8 tokenDecimals = IERC20(token).decimals();
        uint8 feedDecimals = IAggregator(feed).decimals();
        if (uint256(tokenDecimals) + feedDecimals > VALUE_DECIMALS) {
            revert DecimalsTooHigh(tokenDecimals, feedDecimals);
        }
        _feeds[token] = Feed(feed, maxAgeS, tokenDecimals, feedDecimals);
        emit FeedSet(token, feed, maxAgeS);
    }

    /// @inheritdoc ILiquidator
    function setMaxSlippageBps(uint16 bps) external onlySafe {
        if (bps > MAX_SLIPPAGE_LIMIT_BPS) revert SlippageTooHigh(bps, MAX_SLIPPAGE_LIMIT_BPS);
        maxSlippageBps = bps;
        emit MaxSlippageSet(bps);
    }

    function _requireCode(address account) internal view {
        if (account.code.length == 0) revert InvalidAddress(account);
    }

    /* VIEWS */

    /// @inheritdoc ILiquidator
    function feedOf(address token) external view returns (Feed memory) {
        return _feeds[token];
    }
}
