"""What can a program that reads the JSON of `analytics` rely on? Its JSON Schema, made from the types of the report.

`make report-schema` writes it to docs/analytics.schema.json, where it is published; a test compares the two.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ratelimit_worker.reports.analytics import KIND
from ratelimit_worker.reports.stats import SCHEMA, Stats
from ratelimit_worker.reports.words import as_json

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def analytics_schema() -> dict[str, Any]:
    """The JSON Schema of a report. Fields may be added under the same number, so readers must ignore unknown ones."""
    (top,), parts = msgspec.json.schema_components([Stats], ref_template="#/$defs/{name}")
    report: dict[str, Any] = parts.pop(top["$ref"].rpartition("/")[2])
    fields = {
        "kind": {"const": KIND},
        "generated": {"type": "string", "format": "date-time"},
        **report["properties"],
        "schema": {"const": SCHEMA},
    }
    lane = parts["LaneState"]["properties"]
    lane["allowed_per_min"] = {"anyOf": [{"type": "number"}, {"type": "null"}]}
    lane["gate_s"] = {"anyOf": [{"type": "number"}, {"type": "null"}]}  # infinity is null, since JSON has none
    return {
        "$schema": DIALECT,
        "title": f"ratelimit-worker analytics, schema {SCHEMA}",
        "description": "Times are seconds since the epoch, shares lie between 0 and 1, amounts of money are billionths "
        "of a dollar; what is not known is null.",
        "type": "object",
        "properties": fields,
        "required": sorted({"kind", "generated", *report["required"]}),
        "$defs": {name: _described(part) for name, part in sorted(parts.items())},
    }


def _described(part: dict[str, Any]) -> dict[str, Any]:
    """Reduce a description (a docstring) to its first line."""
    if "description" in part:
        part["description"] = part["description"].strip().splitlines()[0]
    return part


if __name__ == "__main__":
    print(as_json(analytics_schema()))
