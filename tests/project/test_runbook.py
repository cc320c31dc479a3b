"""Whoever is woken by an alert finds it in the runbook, and the commands that stand there exist."""

from __future__ import annotations

import re

import click
import pytest
import yaml

from ratelimit_worker.cli import COMMANDS, main
from ratelimit_worker.contracts.alert import Kind
from ratelimit_worker.policy.alert_states import RULES
from tests.builders import ROOT

TEXT = (ROOT / "docs" / "runbook.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))
PROMETHEUS = yaml.safe_load((ROOT / "docs" / "deploy" / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
NAMES = [*(kind.value for kind in Kind), *(rule["alert"] for rule in PROMETHEUS)]


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_stands_there_with_what_to_do(name: str) -> None:
    """What to look at, and what to do; or where that stands."""
    section = SECTIONS[name]
    assert "**Look at**" in section
    assert re.search(r"\*\*[Dd]o\*\*", section)
    for link in re.findall(r"\(#(\w+)\)", section):
        assert link in SECTIONS


def test_nothing_stands_there_that_is_no_alert() -> None:
    """As when a rule is gone."""
    assert sorted(SECTIONS) == sorted(NAMES)


def test_every_command_that_is_named_exists() -> None:
    """With its options."""
    context, found = click.Context(main), 0
    for said in re.findall(r"`(?:ratelimit-worker )?([a-z][a-z ]+(?: [^`]*)?)`", TEXT.replace("\n  ", " ")):
        name, *rest = said.split()
        if name not in COMMANDS:
            continue
        command = main.get_command(context, name)
        if isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command = command.commands[rest[0]]
        assert command is not None
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, said
        found += 1
    assert found > 25


def test_operations_has_a_row_for_each_kind() -> None:
    """When it opens and when it closes; and each event of the web hook is named."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ", text[text.index("## Alerts\n") :], re.MULTILINE)
    assert [name for name in rows if name in set(Kind)] == [kind.value for kind in Kind]
    for rule in RULES.values():
        for event in filter(None, (rule.opens, rule.closes)):
            assert f"`{event}`" in text
