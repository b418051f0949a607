"""The sections of a study's analysis (`fit:`, `optimum:`, `approaches:`, `compare:`, `report:`) in its JSON schema.

They follow from their models. The study's own model holds them as plain mappings, as they are checked where they are
used; an editor should complete and check them all the same.
"""

from typing import Any

from pydantic import BaseModel

from experiments.analysis.spec import ApproachesSpec, CompareSpec, FitSpec, OptimumSpec, ReportSpec

MAY_BE_EMPTY: dict[str, type[BaseModel]] = {
    "fit": FitSpec,
    "optimum": OptimumSpec,
    "approaches": ApproachesSpec,
    "compare": CompareSpec,
}


def lay_sections(schema: dict[str, Any]) -> None:
    """Put the sections' schemas into that of a study, in place."""
    for key, model in MAY_BE_EMPTY.items():
        said = model.model_json_schema()
        _lay(schema, key, {"$defs": said.pop("$defs", {}), "anyOf": [said, {"type": "null"}]})
    _lay(schema, "report", _with_short_figures(ReportSpec.model_json_schema()))
    # A size says some of the keys; the rest is the study's.
    keys = OptimumSpec.model_json_schema()["properties"]
    schema["$defs"]["Variant"]["properties"]["optimum"] |= {"properties": keys, "additionalProperties": False}


def _lay(schema: dict[str, Any], key: str, said: dict[str, Any]) -> None:
    """One section, its parts moved to the definitions of the whole, under the study's own words."""
    schema["$defs"] |= said.pop("$defs", {})
    kept = {name: value for name, value in schema["properties"][key].items() if name in ("description", "default")}
    schema["properties"][key] = {**said, **kept}


def _with_short_figures(said: dict[str, Any]) -> dict[str, Any]:
    """A figure may be named instead of described."""
    names = said["$defs"]["FigureSpec"]["properties"]["figure"]["enum"]
    figures = said["properties"]["figures"]["anyOf"][0]
    figures["items"] = {"anyOf": [{"enum": names}, figures["items"]]}
    return said
