"""`python -m ftmatrix.records.schema`: the JSON schema of a cell's result.json, made from the records."""

import json
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import FloatSchema

from ftmatrix.records.results import CellResult
from ftmatrix.records.storing import NOT_FINITE, SCHEMA_VERSION, VERSION_KEY


class _Strict(GenerateJsonSchema):
    """A number that isn't finite is its name."""

    def float_schema(self, schema: FloatSchema) -> dict[str, Any]:
        return {"anyOf": [super().float_schema(schema), {"enum": ["NaN", *NOT_FINITE.values()]}]}


def result_schema() -> dict[str, Any]:
    """The schema, as JSON Schema 2020-12 has it."""
    schema = TypeAdapter(CellResult).json_schema(schema_generator=_Strict)
    schema["properties"] = {VERSION_KEY: {"const": SCHEMA_VERSION}} | schema["properties"]
    schema["required"] = [VERSION_KEY, *schema["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


if __name__ == "__main__":
    print(json.dumps(result_schema(), indent=1))
