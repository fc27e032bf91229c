"""A liquidation keeper for lending and perpetual protocols."""

__version__ = "0.1.0"
