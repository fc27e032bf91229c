"""Uniswap V3 (v3-core 1.0.1): pools read once a block, swaps reckoned here, legs for its SwapRouter."""

from keeper.venues.uniswap_v3.venue import UniswapV3, UniswapV3Config, pack, path_text

__all__ = ["UniswapV3", "UniswapV3Config", "pack", "path_text"]
