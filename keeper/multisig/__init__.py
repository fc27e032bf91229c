"""The Safe: its transactions, and the tools its signers use."""
