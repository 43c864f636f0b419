"""The schema beside the examples is the one that the installed connectors give."""

from __future__ import annotations

import json
from pathlib import Path

from kadds import plugins
from kadds.config import json_schema

SCHEMA = Path(__file__).parents[3] / "configs" / "kadds.schema.json"


def test_the_schema_of_the_examples_is_up_to_date() -> None:
    own = {name: one for name, one in plugins.connectors().items() if one.distribution == "kadds"}
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema(own), (
        "make it anew: kadds schema > configs/kadds.schema.json"
    )
