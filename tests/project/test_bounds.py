"""No function is so long, or takes so much, that a reader loses its thread."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ratelimit_worker

PACKAGE = Path(ratelimit_worker.__file__).parent
MOST_LINES = 60  #: without the docstring
MOST_PARAMETERS = 8  #: `self` and `cls` not counted
#: What people write by name: the options of `@llm_task`, and the options of a command, which click passes on.
PUBLIC = {"app.py llm_task", "cli/run/__init__.py run"}


class Function(NamedTuple):
    name: str
    lines: int
    parameters: int


def functions(source: str, file: str) -> Iterator[Function]:
    """Every function and method of a module, those within others too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node, clean=False) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            parameters = [one.arg for one in named if one is not None]
            own = parameters[:1] in (["self"], ["cls"])
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            yield Function(f"{file} {node.name}", lines, len(parameters) - own)


def all_functions() -> list[Function]:
    """Those of the package."""
    return [
        function
        for path in sorted(PACKAGE.rglob("*.py"))
        for function in functions(path.read_text("utf-8"), path.relative_to(PACKAGE).as_posix())
    ]


def test_what_is_counted() -> None:
    """Lines with the head and without the docstring; parameters of every kind, and no `self`."""
    source = '''
class Thing:
    def first(self, a, /, b, *more, c=1, **rest):
        """Two
        lines."""
        def within():
            return 1
        return within
'''
    assert list(functions(source, "thing.py")) == [Function("thing.py first", 4, 5), Function("thing.py within", 2, 0)]


def test_no_function_is_longer_than_sixty_lines() -> None:
    """What is longer does two things."""
    long = {function.name: function.lines for function in all_functions() if function.lines > MOST_LINES}
    assert long == {}


def test_no_function_takes_more_than_eight_parameters() -> None:
    """What belongs together has a type; and only what people use by name, and needs it, is left out."""
    wide = {function.name: function.parameters for function in all_functions() if function.parameters > MOST_PARAMETERS}
    assert set(wide) == PUBLIC, wide
