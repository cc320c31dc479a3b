"""Does what crosses a floor have a shape? By annotation: of all modules that take a call's contracts in hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ratelimit_worker

PACKAGE = Path(ratelimit_worker.__file__).parent
USES = re.compile(r"^from ratelimit_worker\.contracts\.(?:plan|call) import", re.M)
#: A dict or a list of anything, a hash of Redis as it came, a tuple whose places mean different things.
SHAPELESS = re.compile(
    r"\b(?:Mapping|MutableMapping|dict)\[(?:str|bytes|Any), (?:Any|object|bytes)\]"
    r"|\b(?:list|Sequence)\[Any\]"
    r"|\btuple\[(?!\])(?!(\w+)(?:, \1)*\])(?!type\[BaseException\], \.\.\.)(?!\w+, \.\.\.)"
)
#: What a caller gave his function, which is his own.
ARGUMENTS = ("args", "kwargs")
#: Where there is a reason; by module, and by the name in it (as a prefix).
ALLOWED = {
    "builtin.batch_line": "a line of a batch file, as JSON has it",
    "contracts.call.Entry.args": "an encoding: the arguments of a script",
    "contracts.plan.Plan.decode": "an encoding: the header of a message",
    "contracts.plan.Plan.encode": "an encoding: the header of a message",
    "contracts.plan.Plan.newer": "what a newer version wrote, which this one does not understand",
    "inprocess.alike.Sets.of": "options of the same public interface, as a caller gives them",
    "inprocess.limiter.AdvancedRateLimiter.": "public interface of the package that this one stands in for",
    "stores.lanes.Lanes.fields": "a lane's hash, which has a contract of its own",
    "stores.live.Live.bars": "how many go before a call, and what holds it back",
    "ports.Outbox.read": "an entry's id and the entry, as Redis' streams have them",
    "worker.backend.Backend.": "Celery's own interface",
    "worker.backend.stored_result": "a result, as Celery stores it",
    "worker.installed.Asked.fingerprint": "a task's arguments, as JSON has them",
    "worker.installed.Asked.plan": "a task's arguments, and options of Celery's",
    "worker.installed.over_tls": "options of redis-py's connections",
    "worker.refusal.request_of": "Celery's request: headers of a message of any shape",
    "worker.refusal.context_of": "Celery's request: headers of a message of any shape",
    "worker.task.plan_by_name": "a task's arguments, and options of Celery's",
    "worker.transport.": "kombu's own interface: its messages",
}


def annotated(path: Path) -> Iterator[tuple[str, str]]:
    """(name, annotation) of each public parameter, result and attribute of a module."""
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)

    def within(body: list[ast.stmt], name: str, in_class: bool) -> Iterator[tuple[str, str]]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from within(node.body, f"{name}.{node.name}", True)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                for one in taken:
                    if one.annotation is not None and one.arg not in ARGUMENTS:
                        yield f"{name}.{node.name}", ast.unparse(one.annotation)
                if node.returns is not None:
                    yield f"{name}.{node.name}", ast.unparse(node.returns)
            elif in_class and isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
                yield f"{name}.{ast.unparse(node.target)}", ast.unparse(node.annotation)

    yield from within(ast.parse(path.read_text()).body, module, False)


def test_what_crosses_a_floor_has_a_shape() -> None:
    """A call's plan, its entry, its record and what is said of them are values with names for all their parts."""
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if USES.search(path.read_text())]
    found = {
        f"{name}: {annotation}"
        for path in [*modules, PACKAGE / "contracts" / "plan.py", PACKAGE / "contracts" / "call.py"]
        for name, annotation in annotated(path)
        if SHAPELESS.search(annotation) and not name.startswith(tuple(ALLOWED))
    }
    assert len(modules) > 10
    assert found == set()


@pytest.mark.parametrize(
    ("annotation", "shapeless"),
    [
        ("Mapping[str, Any]", True),
        ("dict[str, Any] | None", True),
        ("Mapping[bytes, bytes]", True),
        ("list[Any]", True),
        ("tuple[bool, str]", True),
        ("list[tuple[bytes, float]]", True),
        ("tuple[str, ...]", False),
        ("tuple[float, float, float, float]", False),
        ("Mapping[str, float | str]", False),
        ("Plan | None", False),
    ],
)
def test_the_search_finds_what_it_is_for(annotation: str, shapeless: bool) -> None:
    """Vectors and names with numbers have a shape; what holds anything has none."""
    assert bool(SHAPELESS.search(annotation)) is shapeless
