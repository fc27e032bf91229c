// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

interface IERC20 {
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
}

interface IFeed {
    function latestRoundData() external view returns (uint80, int256 answer, uint256, uint256 updatedAt, uint80);
}

/// @title ToyPerp
/// @notice One perp market with isolated margin and no funding, against a vault that pays every winner.
/// @dev Money has 6 decimals, prices 8, sizes 18. An example: whoever wins more than the vault holds waits.
contract ToyPerp {
    struct Position {
        uint128 margin;
        int128 size;
        uint128 entry;
    }

    event Changed(address indexed account);
    event Liquidated(address indexed account, address indexed liquidator, uint256 reward);

    error NotOwner();
    error Paused();
    error StalePrice();
    error NoPosition();
    error Open();
    error Unsafe();
    error Safe();
    error TransferFailed();

    uint256 public constant MAX_AGE_S = 1 days;
    int256 private constant UNIT = 1e20;
    uint256 private constant MAINTENANCE = 20; // the twentieth of the notional
    uint256 private constant REWARD = 5; // the fifth of the maintenance margin

    IERC20 public immutable TOKEN;
    IFeed public immutable FEED;
    address public immutable OWNER = msg.sender;

    bool public paused;
    mapping(address account => Position) public held;

    constructor(IERC20 token, IFeed feed) {
        (TOKEN, FEED) = (token, feed);
    }

    /// @notice Stops liquidations, or lets them go on.
    function setPaused(bool stopped) external {
        require(msg.sender == OWNER, NotOwner());
        paused = stopped;
    }

    /// @notice Buys (`size` above 0) or sells at the feed's price; the margin must be twice what is to be maintained.
    function open(uint128 margin, int128 size) external {
        require(held[msg.sender].size == 0, Open());
        require(size != 0, NoPosition());
        held[msg.sender] = Position(margin, size, uint128(uint256(price())));
        (int256 equity, uint256 maintenance) = judge(msg.sender);
        require(equity >= int256(2 * maintenance), Unsafe());
        emit Changed(msg.sender);
        require(TOKEN.transferFrom(msg.sender, address(this), margin), TransferFailed());
    }

    /// @notice Adds margin to the caller's position.
    function add(uint128 margin) external {
        require(held[msg.sender].size != 0, NoPosition());
        held[msg.sender].margin += margin;
        emit Changed(msg.sender);
        require(TOKEN.transferFrom(msg.sender, address(this), margin), TransferFailed());
    }

    /// @notice Closes the caller's position, while it is safe, and pays its equity.
    function close() external {
        (int256 equity, uint256 maintenance) = judge(msg.sender);
        require(equity >= int256(maintenance), Unsafe());
        delete held[msg.sender];
        emit Changed(msg.sender);
        require(TOKEN.transfer(msg.sender, uint256(equity)), TransferFailed());
    }

    /// @notice Closes an unsafe position and pays the caller a part of what is left of it; the vault keeps the rest.
    function liquidate(address account) external returns (uint256 reward) {
        require(!paused, Paused());
        (int256 equity, uint256 maintenance) = judge(account);
        require(equity < int256(maintenance), Safe());
        reward = maintenance / REWARD;
        if (equity < int256(reward)) reward = equity > 0 ? uint256(equity) : 0;
        delete held[account];
        emit Liquidated(account, msg.sender, reward);
        require(TOKEN.transfer(msg.sender, reward), TransferFailed());
    }

    /// @notice What a position is worth, and what it must be worth; both divide towards zero.
    function judge(address account) public view returns (int256 equity, uint256 maintenance) {
        Position memory position = held[account];
        require(position.size != 0, NoPosition());
        (int256 size, int256 now_) = (position.size, price());
        equity = int256(uint256(position.margin)) + size * (now_ - int256(uint256(position.entry))) / UNIT;
        maintenance = uint256((size < 0 ? -size : size) * now_ / UNIT) / MAINTENANCE;
    }

    /// @notice The feed's price, above 0, below 2^96 and no older than `MAX_AGE_S`.
    function price() public view returns (int256 answer) {
        uint256 updatedAt;
        (, answer,, updatedAt,) = FEED.latestRoundData();
        require(answer > 0 && answer < 2 ** 96, StalePrice());
        require(block.timestamp - updatedAt <= MAX_AGE_S, StalePrice());
    }
}
