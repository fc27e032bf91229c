"""Faults on order: a node's front that goes wrong, deaths at named points, and proof that no promise was broken."""
