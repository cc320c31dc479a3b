"""docs/settings.md says what config.py does: every name, every default, and examples that can be used as they stand."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.config import _LANE_FIELDS, Settings, read_settings, setting_names
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.flow.call.enqueue import lane_fields
from ratelimit_worker.reports.doctor import shown
from tests.builders import ROOT

DOC = (ROOT / "docs" / "settings.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in DOC.splitlines()
    if re.match(r"\| `[A-Za-z_]+` \|", line)
]


def rows(pattern: str) -> dict[str, list[str]]:
    """The rows whose name matches → their other cells."""
    return {row[0].strip("`"): row[1:] for row in ROWS if re.fullmatch(pattern, row[0].strip("`"))}


def test_every_setting_stands_there_with_its_default() -> None:
    """No name is missing, none is there that is not in the code, and each default is the code's."""
    defaults = {f"MAISD_{f.name.upper()}": shown(f.name, f.default) for f in fields(Settings) if "parse" in f.metadata}
    defaults |= dict.fromkeys(("MAISD_LANES", "MAISD_PROVIDERS", "MAISD_PRICES", "MAISD_BUDGETS"), "-")
    defaults |= dict.fromkeys(("MAISD_CACHE_TTL_BY_CONTEXT", "MAISD_FLOWER_OPERATORS"), "-")
    defaults["RATE_LIMIT_DELAY"] = "1"
    assert set(defaults) == {*setting_names(), "RATE_LIMIT_DELAY"}
    documented = rows("[A-Z_]+")
    assert {name: cells[0] for name, cells in documented.items()} == defaults
    assert all(len(cells) == 4 and cells[2] for cells in documented.values())
    assert len(ROWS) == len(documented) + len(rows("[a-z_]+")), "no name stands there twice"


def test_every_field_of_a_lane_stands_there_with_its_default() -> None:
    """Those that `MAISD_LANES` takes, and what a lane is without them."""
    words = {None: "-", False: "false", True: "true"}
    known = {name: words[getattr(LaneLimits(), name)] for name in _LANE_FIELDS}
    assert {name: cells[0] for name, cells in rows("[a-z_]+").items()} == {**known, "parents": "-", "tenants": "-"}


def test_the_examples_say_the_same(tmp_path: Path) -> None:
    """The TOML file and the JSON are taken as they stand."""
    (toml,) = re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL)
    providers, json = re.findall(r"```json\n(.*?)```", DOC, re.DOTALL)
    assert read_settings({"MAISD_PROVIDERS": providers}).providers["openai"].query == {"api-version": "2024-10-21"}
    (tmp_path / "lanes.toml").write_text(toml)
    from_file = read_settings({"MAISD_LANES": str(tmp_path / "lanes.toml")}).lanes
    assert from_file == read_settings({"MAISD_LANES": json}).lanes
    assert from_file["openai:gpt-4o"].tenants == {"team-a": 2.0, "batch": 0.5}
    assert (from_file["internal"].adaptive, from_file["stub"].unlimited) == (False, True)


@pytest.mark.parametrize(
    ("delay", "lane", "rpm", "unlimited"),
    [
        ("", "{}", 60.0, "0"),
        ("0.5", '{"unlimited": true}', 120.0, "0"),
        ("0", "{}", "", "1"),
        ("0.5", '{"rpm": 7}', 7.0, "0"),
    ],
)
def test_a_lane_while_the_first_switch_is_off(delay: str, lane: str, rpm: float | str, unlimited: str) -> None:
    """One call per RATE_LIMIT_DELAY, or fewer where so told; what is no pace stays."""
    environ = {
        "MAISD_ENABLE_ADVANCED_RATE_LIMITING": "off",
        "RATE_LIMIT_DELAY": delay,
        "MAISD_LANES": f'{{"a": {{"concurrency": 3, {lane[1:]}}}'.replace(", }", "}"),
    }
    fields = lane_fields(read_settings(environ), "a")
    assert (fields["rpm"], str(fields["unlimited"]), fields["adaptive"], fields["cap"]) == (rpm, unlimited, 0, 3)


def test_figures_reach_further_than_rows() -> None:
    """MAISD_STATS_RETENTION_HOURS; roll-ups stay when attempts go."""
    assert read_settings({}).figures_reach_s == 24 * 3600
    assert read_settings({"MAISD_STATS_RETENTION_HOURS": "1.5"}).figures_reach_s == 5400
    assert read_settings({"MAISD_RETENTION_DAYS": "0.5"}).figures_reach_s == 24 * 3600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BASE_DELAY", "0"),
        ("CAPTURE_CONTENT", "prompts"),
        ("ALERT_WEBHOOK_URL", "hooks.example.com/x"),
        ("ALERT_WEBHOOK_URL", "https:///services/hunter2"),
        ("ALERT_WEBHOOK_URL", "https://host:port/hunter2"),
        ("ALERT_WEBHOOK_URL", "ftp://host/hunter2"),
        ("ALERT_WEBHOOK_URL", "https://host/hun ter2"),
        ("ALERT_WEBHOOK_SECRET", "hunter2"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(name: str, value: str) -> None:
    """One line that says what to use, and nothing that opens a door."""
    with pytest.raises(ConfigurationError) as refused:
        read_settings({f"MAISD_{name}": value})
    assert str(refused.value).startswith(f"MAISD_{name}=")
    assert "use " in str(refused.value)
    assert "hunter2" not in str(refused.value)
