"""CONNECTS: what happens to a call, in the order in which it happens."""
