// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IMorpho} from "../src/interfaces/IMorpho.sol";
import {IUniswapV3Router} from "../src/interfaces/IUniswapV3Router.sol";
import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {LyingFlashSource} from "./mocks/LyingFlashSource.sol";
import {EvilToken, Exchange, ExchangeV2, Lender, MorphoLender} from "./mocks/Markets.sol";
import {LendingPool} from "./mocks/Protocols.sol";

/// @notice A world where no token that counts is made or lost: honest lenders of both kinds and a bank, a flash pool
/// whose fees go to whoever inherits this, exchanges with an honest pool and pools of his own, and a pool, routers and a
/// flash source of his that the Safe never listed. He is rich and holds the operator's key.
abstract contract SiegeSetup is LiquidatorSetup {
    uint24 internal constant HONEST = 3000;
    uint24 internal constant OWN = 1;
    uint24 internal constant V2 = 0;
    uint256 internal constant LENT_USDC = 1e15;
    uint256 internal constant LENT_WETH = 1e24;
    uint256 internal constant USDC_VALUE = 1e30;

    Lender internal lender;
    Lender internal bank; // lends flash loans only
    MorphoLender internal blue;
    Exchange internal exchange_;
    ExchangeV2 internal exchange2;
    EvilToken internal evil;
    LyingFlashSource internal liar;
    uint256 internal armed; // strikes to make at the evil token's next transfer, as bits

    constructor() {
        setUp();
        (lender, bank, blue) = (new Lender(usdc, weth), new Lender(usdc, weth), new MorphoLender(usdc, weth));
        (exchange_, exchange2) = (new Exchange(), new ExchangeV2());
        (evil, liar) = (new EvilToken(), new LyingFlashSource());
        relist();
        usdc.mint(address(lender), LENT_USDC);
        usdc.mint(address(bank), LENT_USDC);
        usdc.mint(address(blue), LENT_USDC);
        weth.mint(address(lender), LENT_WETH);
        weth.mint(address(blue), LENT_WETH);
        usdc.mint(address(this), 1e15);
        weth.mint(address(this), 1e24);
        usdc.mint(address(liar), 1e12);
        evil.mint(address(this), 1e30);
        usdc.approve(address(lender), ALL);
        for (uint256 i; i < 2; ++i) {
            Exchange one = i == 0 ? exchange_ : exchange2;
            evil.approve(address(one), ALL);
            usdc.approve(address(one), ALL);
            weth.approve(address(one), ALL);
            one.refill(address(weth), i == 0 ? HONEST : V2, address(usdc), 5000e18, 10_000_000e6);
        }
        price(10_000);
    }

    /// @dev What the set-up listed becomes the thief's own and is listed no more.
    function relist() internal {
        allow(address(pool), LendingPool.liquidate.selector, 0);
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(pool), ILiquidator.FlashKind.NONE)));
        allow(address(morpho), IMorpho.liquidate.selector, 0);
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(morpho), ILiquidator.FlashKind.NONE)));
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(router), ILiquidator.VenueKind.NONE)));
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(router2), ILiquidator.VenueKind.NONE)));
        allow(address(lender), Lender.liquidate.selector, LENDING);
        allow(address(blue), IMorpho.liquidate.selector, LENDING);
        allow(address(lender), Lender.reward.selector, LENDING);
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(lender), ILiquidator.FlashKind.AAVE_V3)));
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(bank), ILiquidator.FlashKind.AAVE_V3)));
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(blue), ILiquidator.FlashKind.MORPHO)));
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(exchange_), ILiquidator.VenueKind.UNISWAP_V3)));
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(exchange2), ILiquidator.VenueKind.UNISWAP_V2)));
        asSafe(abi.encodeCall(ILiquidator.setOperator, (address(this), true)));
    }

    /* THE THIEF'S OWN */

    /// @dev Sets what the thief's own pools give for WETH, in basis points of its value at the margin.
    function price(uint256 keptBps) internal {
        uint256 kept = armed;
        armed = 0;
        for (uint256 i; i < 2; ++i) {
            (Exchange one, uint24 tier) = i == 0 ? (exchange_, OWN) : (Exchange(exchange2), V2);
            one.refill(address(weth), tier, address(evil), 1e21, 1e21);
            one.refill(address(evil), tier, address(usdc), 1e22, 2e13 * keptBps / 10_000);
        }
        armed = kept;
    }

    function trade(address from, address to, uint256 amount) internal returns (uint256) {
        return exchange_.exactInput(
            IUniswapV3Router.ExactInputParams(
                abi.encodePacked(from, HONEST, to), address(this), block.timestamp, amount, 0
            )
        );
    }
}
