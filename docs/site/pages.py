"""What is on the site? Each document as it stands in the repository, and reference pages that the code itself writes.

    python docs/site/pages.py DIRECTORY

The documents link to each other and to files beside `docs/`, as one reads them in a repository. On the site `docs/` is
the top, so links are written anew; a link to a file that is no page (`examples/agent.py`) leads to a copy of it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

import ratelimit_worker
from ratelimit_worker.calls import SICK, Category
from ratelimit_worker.cli import COMMANDS, main
from ratelimit_worker.contracts.lane import FIELDS
from ratelimit_worker.policy.retry import RULES
from ratelimit_worker.stores import keys

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
#: Files outside docs/ that are on the site: where they stand → where they are on the site.
BESIDE = {
    "README.md": "index.md",
    "docs/analytics.schema.json": "analytics.schema.json",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "examples/README.md": "examples/README.md",
    "examples/agent.py": "examples/agent.py",
    "examples/existing_app.py": "examples/existing_app.py",
    "examples/questions.jsonl": "examples/questions.jsonl",
}
#: Folders to which documents link → the page that shows what is in them.
FOLDERS = {
    ROOT / "examples": "examples/README.md",
    DEPLOY: "reference/deploy.md",
    DEPLOY / "systemd": "reference/deploy.md",
}
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def sources() -> dict[Path, str]:
    """Every file of the repository that is on the site, and its place there."""
    docs = ROOT / "docs"
    documents = [*sorted(docs.glob("*.md")), *sorted((docs / "how-to").glob("*.md"))]
    found = {path: path.relative_to(docs).as_posix() for path in documents}
    found |= {path: path.relative_to(docs).as_posix() for path in sorted(DEPLOY.rglob("*")) if path.is_file()}
    return found | {ROOT / name: place for name, place in BESIDE.items()}


def moved(text: str, path: Path, places: Mapping[Path, str]) -> str:
    """A document's text with its links as the site needs them.

    Raises:
        ValueError: it links to a file that is not on the site.
    """
    here = places[path]

    def link(match: re.Match[str]) -> str:
        target = (path.parent / match[2]).resolve()
        place = FOLDERS.get(target) or places.get(target)
        if place is None:
            raise ValueError(f"{path.relative_to(ROOT)} links to {match[2]}, which is not on the site")
        return match[1] + "../" * here.count("/") + place

    return _LINK.sub(link, text)


def commands() -> str:
    """Each command's own help."""
    lines = [
        "# Every command's help",
        "",
        "As `--help` prints it. What the commands are for, and their exit codes: [command line](../command-line.md).",
    ]
    for name, command in _tree():
        words = command.get_help(click.Context(command, info_name=f"ratelimit-worker {name}", terminal_width=80))
        lines += ["", f"## {name}", "", "```text", words, "```"]
    return "\n".join(lines) + "\n"


def _tree() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main)
    for name in sorted(COMMANDS):
        command = main.get_command(context, name)
        if command is not None and not (isinstance(command, click.Group) and not command.invoke_without_command):
            yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {part}", command.commands[part]) for part in sorted(command.commands))


def python() -> str:
    """What `from ratelimit_worker import …` offers, by its signatures and docstrings."""
    lines = ["# Python", "", "What `from ratelimit_worker import …` offers."]
    for name in sorted(ratelimit_worker.__all__, key=str.lower):
        thing = getattr(ratelimit_worker, name)
        lines += ["", f"## {name}", "", "```python", _signature(name, thing), "```", "", *_docstring(thing)]
        if dataclasses.is_dataclass(thing) or not inspect.isclass(thing):
            continue
        for method, function in inspect.getmembers(thing, inspect.isfunction):
            if not method.startswith("_") and function.__module__.startswith("ratelimit_worker") and function.__doc__:
                lines += ["", f"### {name}.{method}", "", "```python", _signature(method, function), "```", ""]
                lines += _docstring(function)
    return "\n".join(lines) + "\n"


def _signature(name: str, thing: object) -> str:
    """`name(a, b=1)`, an argument a line where it is long; of an exception its class and the one above."""
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return f"class {name}({thing.__base__.__name__ if thing.__base__ else ''})"
    if not callable(thing):
        return name
    told = _unquoted(inspect.signature(thing))
    if len(f"{name}{told}") <= 100:
        return f"{name}{told}"
    starred, parts = False, []
    for parameter in told.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        parts.append(str(parameter))
    bare = str(told.replace(parameters=[]))
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), bare.removeprefix("(")])


class _Words:
    """An annotation as it is written, without the quotes that a text has."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __repr__(self) -> str:
        return self.words


def _unquoted(told: inspect.Signature) -> inspect.Signature:
    def plain(annotation: object) -> object:
        return _Words(annotation) if isinstance(annotation, str) else annotation

    parameters = [each.replace(annotation=plain(each.annotation)) for each in told.parameters.values()]
    return told.replace(parameters=parameters, return_annotation=plain(told.return_annotation))


def _docstring(thing: object) -> list[str]:
    text = inspect.getdoc(thing) or ""
    # What stands indented under "Args:" and the like is a list there, and would be a block of code here.
    return (
        ["```text", text, "```"] if re.search(r"^(Args|Raises|Returns|Yields):|^ {4}", text, re.MULTILINE) else [text]
    )


def categories() -> str:
    """Each category of failures, with the rule by which it is retried."""
    lines = [
        "# Categories of failures",
        "",
        "By the table that the code retries by. What falls into each, and what 429s and quotas do instead of a retry:",
        "[failures](../failures.md).",
        "",
        "| category | retried | attempts, at most | first wait below, s | longest wait, s | counts towards the mode |",
        "|---|---|---|---|---|---|",
    ]
    for category in Category:
        rule = RULES.get(category)
        waits = f"yes | {rule.tries} | {rule.backoff.base_s:g} | {rule.backoff.cap_s:g}" if rule else "no | – | – | –"
        lines.append(f"| `{category.value}` | {waits} | {'yes' if category in SICK else 'no'} |")
    return "\n".join(lines) + "\n"


def redis_keys() -> str:
    """The table of keys, and of the fields of each hash."""
    told = inspect.getdoc(keys) or ""
    lines = ["# What is in Redis", "", told.partition("\n\n")[2], "", "## Fields of a lane", ""]
    lines += ["| field | is | unit | written by | read by |", "|---|---|---|---|---|"]
    lines += [f"| `{f.stored}` | {f.name} | {f.unit} | {f.written_by} | {f.read_by} |" for f in FIELDS]
    return "\n".join(lines) + "\n"


def deploy() -> str:
    """Each file of docs/deploy, whole."""
    lines = [
        "# Files for a deployment",
        "",
        "What they are for: [deployment](../deployment.md), [metrics](../metrics.md).",
    ]
    for path in sorted(DEPLOY.rglob("*")):
        if path.is_file():
            name = path.relative_to(DEPLOY).as_posix()
            form = {".yml": "yaml", ".yaml": "yaml", ".json": "json"}.get(path.suffix, "ini")
            lines += ["", f"## {name}", "", f"[{path.name}](../deploy/{name})", ""]
            lines += [f"```{form}", path.read_text("utf-8"), "```"]
    return "\n".join(lines) + "\n"


REFERENCE: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/python.md": python,
    "reference/categories.md": categories,
    "reference/deploy.md": deploy,
    "reference/keys.md": redis_keys,
}


def write(into: Path) -> None:
    """Write all pages into a directory, which is emptied first.

    Raises:
        ValueError: a document links to a file that is not on the site.
    """
    shutil.rmtree(into, ignore_errors=True)
    places = sources()
    for path, place in places.items():
        target = into / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(moved(path.read_text("utf-8"), path, places), "utf-8")
        else:
            shutil.copyfile(path, target)
    for place, page in REFERENCE.items():
        target = into / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
