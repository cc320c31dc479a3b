"""The documents as a site: every document, command, public name and category has its place, and links lead somewhere.

What mkdocs itself finds wrong (a heading that is not there) is found by `make docs`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml

import ratelimit_worker
from ratelimit_worker.calls import Category
from ratelimit_worker.cli import COMMANDS, main
from tests.builders import ROOT

SITE = ROOT / "docs" / "site"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """docs/site/pages.py; `docs` is no package."""
    spec = importlib.util.spec_from_file_location("pages", SITE / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(pages: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as `make docs` writes them."""
    into = tmp_path_factory.mktemp("site")
    pages.write(into)
    return into


def _named(part: Any) -> Iterator[str]:
    """The pages that a part of the navigation names."""
    if isinstance(part, str):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _named(inner)


def test_every_page_is_in_the_navigation(written: Path) -> None:
    """And nothing is there that is no page."""
    navigation = yaml.safe_load((SITE / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert sorted(_named(navigation)) == sorted(page.relative_to(written).as_posix() for page in written.rglob("*.md"))


def test_every_command_and_public_name_is_in_the_reference(written: Path) -> None:
    """Groups by their own commands."""
    told = (written / "reference" / "commands.md").read_text("utf-8")
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        parts = [f"{name} {part}" for part in command.commands] if isinstance(command, click.Group) else [name]
        for each in parts:
            assert f"\n## {each}\n" in told
            assert f"Usage: ratelimit-worker {each}" in told
    python = (written / "reference" / "python.md").read_text("utf-8")
    assert re.findall(r"^## (\w+)$", python, re.MULTILINE) == sorted(ratelimit_worker.__all__, key=str.lower)
    categories = (written / "reference" / "categories.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)`", categories, re.MULTILINE) == [category.value for category in Category]


def test_the_keys_are_on_it(written: Path) -> None:
    """With the fields of a lane, each key's row whole."""
    told = (written / "reference" / "keys.md").read_text("utf-8")
    assert "| `rlw:lane:L` | HASH |" in told
    assert "| `rpm` | told.limits.rpm | requests/min |" in told


def test_a_link_that_leads_nowhere_is_refused(pages: ModuleType) -> None:
    """With the document and the link; others are moved to where their page is."""
    places = pages.sources()
    readme, settings = ROOT / "README.md", ROOT / "docs" / "settings.md"
    assert pages.moved("[a](docs/settings.md#modes) [b](#here) [c](https://host/x.md)", readme, places) == (
        "[a](settings.md#modes) [b](#here) [c](https://host/x.md)"
    )
    assert (
        pages.moved("[e](../examples/) [r](../README.md)", settings, places) == "[e](examples/README.md) [r](index.md)"
    )
    with pytest.raises(ValueError, match=r"docs/settings.md links to gone.md, which is not on the site"):
        pages.moved("[g](gone.md)", settings, places)
