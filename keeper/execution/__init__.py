"""Fees and the sender: from a cleared plan to a settlement."""
