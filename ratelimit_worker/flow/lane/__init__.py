"""Decisions about a lane as a whole, by the law or by a person."""
