"""Figures, states and findings for people: one function for each question, used by all commands and pages."""
