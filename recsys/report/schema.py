"""The shape of ``lift.json`` and ``statement.json``, as JSON Schema (draft 2020-12) beside this module.

The models of ``lift_shapes`` and ``statement_shapes`` are the source; ``python -m recsys.report.schema`` writes the two
files, and a test holds them and the outputs of a real experiment together. Keys may be added in later versions, so
objects stay open; a key that is here keeps its name and type.
"""

from __future__ import annotations

import json
from pathlib import Path

from recsys.report.lift_shapes import Lift
from recsys.report.shapes import Open
from recsys.report.statement_shapes import Statement

FILES = {"lift": "lift.schema.json", "statement": "statement.schema.json"}
MODELS: dict[str, type[Open]] = {"lift": Lift, "statement": Statement}


def schema_text(name: str) -> str:
    """The schema of ``lift`` or ``statement`` as it stands in its file."""
    made = MODELS[name].model_json_schema()
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": f"{name}.json"}
    return json.dumps(made, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for key, file in FILES.items():
        (Path(__file__).parent / file).write_text(schema_text(key))
