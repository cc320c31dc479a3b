"""REMEMBER: thin adapters over Redis and SQL; decisions live in policy and in the Lua scripts."""
