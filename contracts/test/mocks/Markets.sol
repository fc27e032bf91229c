// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAaveV3FlashReceiver} from "../../src/interfaces/IAaveV3Flash.sol";
import {IMorpho, IMorphoCallbacks} from "../../src/interfaces/IMorpho.sol";
import {IUniswapV2Router} from "../../src/interfaces/IUniswapV2Router.sol";
import {IUniswapV3Router} from "../../src/interfaces/IUniswapV3Router.sol";
import {Moving, Token} from "./Tokens.sol";

/// @notice An honest lending protocol: it has what it was given, decides itself what may be repaid and what is seized
/// for it, and remembers both by liquidator. Lends flash loans too.
contract Lender {
    uint256 public constant BONUS_BPS = 500;
    uint256 public constant PREMIUM_BPS = 5;
    uint256 internal constant WETH_PRICE = 2000;

    Token internal immutable usdc;
    Token internal immutable weth;

    /// @notice Raw USDC that is open to liquidation.
    uint256 public unhealthy;
    uint256 public repaid;
    uint256 public premiums;
    mapping(address liquidator => uint256) public repaidBy;
    mapping(address liquidator => uint256) public seizedBy;

    error Healthy();
    error FlashFailed();

    constructor(Token usdc_, Token weth_) {
        (usdc, weth) = (usdc_, weth_);
    }

    /// @notice Prices fall, and more debt can be liquidated.
    function sicken(uint256 amount) external {
        unhealthy += amount;
    }

    function liquidate(uint256 repay) external {
        Moving.push(address(weth), msg.sender, _book(repay));
        Moving.pull(address(usdc), msg.sender, repay);
    }

    function _book(uint256 repay) internal returns (uint256 seize) {
        if (repay == 0 || repay > unhealthy) revert Healthy();
        seize = repay * (10_000 + BONUS_BPS) * 1e12 / 10_000 / WETH_PRICE;
        unhealthy -= repay;
        repaid += repay;
        repaidBy[msg.sender] += repay;
        seizedBy[msg.sender] += seize;
    }

    /// @notice Another call that plans may make; it gives nothing.
    function reward() external {}

    function flashLoanSimple(address receiver, address asset, uint256 amount, bytes calldata params, uint16)
        external
    {
        uint256 premium = amount * PREMIUM_BPS / 10_000;
        Moving.push(asset, receiver, amount);
        if (!IAaveV3FlashReceiver(receiver).executeOperation(asset, amount, premium, msg.sender, params)) {
            revert FlashFailed();
        }
        Moving.pull(asset, receiver, amount + premium);
        premiums += premium;
    }
}

/// @notice The same with Morpho Blue's functions: it sends the collateral first and lends without a premium.
contract MorphoLender is Lender, IMorpho {
    constructor(Token usdc_, Token weth_) Lender(usdc_, weth_) {}

    function flashLoan(address token, uint256 assets, bytes calldata data) external {
        Moving.push(token, msg.sender, assets);
        IMorphoCallbacks(msg.sender).onMorphoFlashLoan(assets, data);
        Moving.pull(token, msg.sender, assets);
    }

    /// @notice Whatever market is named, it is the one there is; but the token that is named as collateral gets the word,
    /// as it does where anybody opens a market.
    function liquidate(
        MarketParams calldata market,
        address,
        uint256,
        uint256 repaidShares,
        bytes calldata data
    ) external returns (uint256 seized, uint256) {
        seized = _book(repaidShares);
        Moving.push(address(weth), msg.sender, seized);
        if (market.collateralToken != address(0)) Moving.push(market.collateralToken, msg.sender, 0);
        if (data.length != 0) IMorphoCallbacks(msg.sender).onMorphoLiquidate(repaidShares, data);
        Moving.pull(address(usdc), msg.sender, repaidShares);
        return (seized, repaidShares);
    }
}

/// @notice Constant-product pools behind one honest router. Anybody opens a pool of any two tokens and is its owner.
/// Every hop transfers its token, as real pools do, so a token in the middle of a path gets the word.
contract Exchange is IUniswapV3Router {
    mapping(bytes32 pool => address) public ownerOf;
    mapping(bytes32 pool => mapping(address token => uint256)) public reserveOf;

    error NotOwner();
    error TooLittle();
    error TooMuch();

    function poolOf(address one, uint24 fee, address other) public pure returns (bytes32) {
        return one < other ? keccak256(abi.encode(one, fee, other)) : keccak256(abi.encode(other, fee, one));
    }

    /// @notice Opens a pool, or takes out what is in it and puts other amounts in.
    function refill(address one, uint24 fee, address other, uint256 ofOne, uint256 ofOther) external {
        bytes32 pool = poolOf(one, fee, other);
        if (ownerOf[pool] == address(0)) ownerOf[pool] = msg.sender;
        if (ownerOf[pool] != msg.sender) revert NotOwner();
        (uint256 hadOne, uint256 hadOther) = (reserveOf[pool][one], reserveOf[pool][other]);
        (reserveOf[pool][one], reserveOf[pool][other]) = (ofOne, ofOther);
        Moving.push(one, msg.sender, hadOne);
        Moving.push(other, msg.sender, hadOther);
        Moving.pull(one, msg.sender, ofOne);
        Moving.pull(other, msg.sender, ofOther);
    }

    function exactInput(ExactInputParams calldata params) external payable returns (uint256 amount) {
        amount = params.amountIn;
        Moving.pull(_tokenAt(params.path, 0), msg.sender, amount);
        for (uint256 i; i + 43 <= params.path.length; i += 23) {
            (address from, uint24 fee, address to) = _hopAt(params.path, i);
            bytes32 pool = poolOf(from, fee, to);
            uint256 got = reserveOf[pool][to] * amount / (reserveOf[pool][from] + amount);
            _book(pool, from, to, amount, got);
            amount = got;
            bool last = i + 43 == params.path.length;
            Moving.push(to, last ? params.recipient : address(this), amount);
        }
        if (amount < params.amountOutMinimum) revert TooLittle();
    }

    function exactOutput(ExactOutputParams calldata params) external payable returns (uint256 amount) {
        amount = params.amountOut;
        Moving.push(_tokenAt(params.path, 0), params.recipient, amount);
        for (uint256 i; i + 43 <= params.path.length; i += 23) {
            (address to, uint24 fee, address from) = _hopAt(params.path, i);
            bytes32 pool = poolOf(from, fee, to);
            uint256 needed = reserveOf[pool][from] * amount / (reserveOf[pool][to] - amount) + 1;
            _book(pool, from, to, needed, amount);
            amount = needed;
            if (i + 43 != params.path.length) Moving.push(from, address(this), amount);
        }
        if (amount > params.amountInMaximum) revert TooMuch();
        Moving.pull(_tokenAt(params.path, params.path.length - 20), msg.sender, amount);
    }

    function _book(bytes32 pool, address from, address to, uint256 paid, uint256 got) internal {
        reserveOf[pool][from] += paid;
        reserveOf[pool][to] -= got;
    }

    function _hopAt(bytes calldata path, uint256 offset) internal pure returns (address, uint24, address) {
        return (_tokenAt(path, offset), uint24(bytes3(path[offset + 20:offset + 23])), _tokenAt(path, offset + 23));
    }

    function _tokenAt(bytes calldata path, uint256 offset) internal pure returns (address) {
        return address(bytes20(path[offset:offset + 20]));
    }
}

/// @notice The same behind a v2 router, whose pools are those of tier zero.
contract ExchangeV2 is Exchange, IUniswapV2Router {
    function swapExactTokensForTokens(
        uint256 amountIn,
        uint256 amountOutMin,
        address[] calldata path,
        address to,
        uint256
    ) external returns (uint256[] memory amounts) {
        uint256 last = path.length - 1;
        amounts = new uint256[](last + 1);
        amounts[0] = amountIn;
        Moving.pull(path[0], msg.sender, amountIn);
        for (uint256 i; i < last; ++i) {
            bytes32 pool = poolOf(path[i], 0, path[i + 1]);
            amounts[i + 1] = reserveOf[pool][path[i + 1]] * amounts[i] / (reserveOf[pool][path[i]] + amounts[i]);
            _book(pool, path[i], path[i + 1], amounts[i], amounts[i + 1]);
            Moving.push(path[i + 1], i + 1 == last ? to : address(this), amounts[i + 1]);
        }
        if (amounts[last] < amountOutMin) revert TooLittle();
    }

    function swapTokensForExactTokens(
        uint256 amountOut,
        uint256 amountInMax,
        address[] calldata path,
        address to,
        uint256
    ) external returns (uint256[] memory amounts) {
        uint256 last = path.length - 1;
        amounts = new uint256[](last + 1);
        amounts[last] = amountOut;
        for (uint256 i = last; i != 0; --i) {
            bytes32 pool = poolOf(path[i - 1], 0, path[i]);
            amounts[i - 1] = reserveOf[pool][path[i - 1]] * amounts[i] / (reserveOf[pool][path[i]] - amounts[i]) + 1;
            _book(pool, path[i - 1], path[i], amounts[i - 1], amounts[i]);
        }
        if (amounts[0] > amountInMax) revert TooMuch();
        Moving.pull(path[0], msg.sender, amounts[0]);
        for (uint256 i = 1; i <= last; ++i) {
            Moving.push(path[i], i == last ? to : address(this), amounts[i]);
        }
    }
}

/// @notice A worthless token that gives its maker the word at every transfer.
contract EvilToken is Token(18) {
    error Struck();

    address internal immutable maker = msg.sender;

    function _move(address from, address to, uint256 amount) internal override {
        super._move(from, to, amount);
        (bool success,) = maker.call(abi.encodeWithSignature("strike()"));
        if (!success) revert Struck();
    }
}
