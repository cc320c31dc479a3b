"""Calls to providers: one HTTP client, and one module for each API."""
