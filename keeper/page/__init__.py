"""The signers' page: the commands of `keeper pause` for a browser with a wallet, on this machine alone."""
