"""Providers call: one HTTP client, and the shapes of the APIs behind it."""
