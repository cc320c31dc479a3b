"""Stores remember: thin adapters over Redis and SQL. Decisions are made in `policy` and in the Lua scripts."""
