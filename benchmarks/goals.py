"""How does a benchmark say whether a goal is met? One line a figure, with the goal beside it."""

from __future__ import annotations


def beside(what: str, found: float, wanted: float, unit: str, *, least: bool = False) -> bool:
    """Print a figure beside its goal → whether it was missed.

    Args:
        least: The goal is the least that is wanted, not the most.
    """
    missed = found < wanted if least else found > wanted
    said = f"goal: at {'least' if least else 'most'} {wanted:,g} {unit}"
    print(f"{what}: {found:,.4g} {unit} ({said}){' MISSED' if missed else ''}", flush=True)
    return missed
