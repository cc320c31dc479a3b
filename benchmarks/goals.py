"""How does a benchmark report whether a goal is met? One line for each figure, with its goal."""

from __future__ import annotations


def beside(what: str, found: float, wanted: float, unit: str, *, least: bool = False) -> bool:
    """Print a figure with its goal; returns whether the goal was missed.

    Args:
        least: Whether the goal is a minimum, not a maximum.
    """
    missed = found < wanted if least else found > wanted
    said = f"goal: at {'least' if least else 'most'} {wanted:,g} {unit}"
    print(f"{what}: {found:,.4g} {unit} ({said}){' MISSED' if missed else ''}", flush=True)
    return missed
