"""Lending and perp protocols, one adapter each."""
