// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @notice A plain token that anyone mints.
contract Token {
    uint8 public immutable decimals;
    mapping(address account => uint256) public balanceOf;
    mapping(address account => mapping(address spender => uint256)) public allowance;

    constructor(uint8 decimals_) {
        decimals = decimals_;
    }

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address spender, uint256 amount) external virtual returns (bool) {
        allowance[msg.sender][spender] = amount;
        return true;
    }

    function transfer(address to, uint256 amount) external virtual returns (bool) {
        _move(msg.sender, to, amount);
        return true;
    }

    function transferFrom(address from, address to, uint256 amount) external virtual returns (bool) {
        allowance[from][msg.sender] -= amount;
        _move(from, to, amount);
        return true;
    }

    function _move(address from, address to, uint256 amount) internal virtual {
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @notice Like USDT: no return values, and a non-zero approval cannot be changed to another non-zero one.
contract NoReturnToken {
    uint8 public constant decimals = 6;
    mapping(address account => uint256) public balanceOf;
    mapping(address account => mapping(address spender => uint256)) public allowance;

    error ApproveRace();

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address spender, uint256 amount) external {
        if (amount != 0 && allowance[msg.sender][spender] != 0) revert ApproveRace();
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @notice Keeps 1 % of every transfer.
contract FeeToken is Token(18) {
    function _move(address from, address to, uint256 amount) internal override {
        balanceOf[from] -= amount;
        balanceOf[to] += amount - amount / 100;
    }
}

/// @notice Answers false instead of moving anything, or anything to one receiver.
contract RefusingToken is Token(18) {
    address public refused;

    function setRefused(address to) external {
        refused = to;
    }

    function transfer(address to, uint256 amount) external override returns (bool) {
        if (refused == address(0) || refused == to) return false;
        _move(msg.sender, to, amount);
        return true;
    }
}

/// @notice Calls a hook, and insists that it fails, at every transfer and approval.
contract HookedToken is Token(18) {
    error HookSucceeded(uint256 index);

    address public target;
    bytes[] public requests;
    uint256 public calls;

    function setHook(address target_, bytes[] calldata requests_) external {
        target = target_;
        delete requests;
        for (uint256 i; i < requests_.length; ++i) {
            requests.push(requests_[i]);
        }
    }

    function approve(address spender, uint256 amount) external override returns (bool) {
        _hook();
        allowance[msg.sender][spender] = amount;
        return true;
    }

    function _move(address from, address to, uint256 amount) internal override {
        _hook();
        super._move(from, to, amount);
    }

    function _hook() internal {
        for (uint256 i; i < requests.length; ++i) {
            (bool success,) = target.call(requests[i]);
            if (success) revert HookSucceeded(i);
            ++calls;
        }
    }
}

/// @notice Moves tokens that may return nothing.
library Moving {
    error MoveFailed(address token);

    function pull(address token, address from, uint256 amount) internal {
        _do(token, abi.encodeCall(Token.transferFrom, (from, address(this), amount)));
    }

    function push(address token, address to, uint256 amount) internal {
        _do(token, abi.encodeCall(Token.transfer, (to, amount)));
    }

    function _do(address token, bytes memory request) private {
        (bool success,) = token.call(request);
        if (!success) revert MoveFailed(token);
    }
}
