"""Local chains: real protocols on Anvil, scenarios, and the tools they need."""
