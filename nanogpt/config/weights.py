"""`init_from`: scratch, or weights by where they are to be had and by their sha256."""

import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag, TypeAdapter, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from nanogpt.config.section import Section

HUB = "hf:"
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # nanoGPT's own values of --init_from


class Weights(Section):
    """Weights to start from. They are known by their content; where they lie is not part of a run's identity."""

    weights: str = Field(min_length=1, description="hf:NAME[@REVISION], a folder as transformers saves it, or a run.")
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Of the weights' files; filled in when resolved."
    )


def _arm(value: Any) -> str:
    return "scratch" if value == "scratch" else "file"


@dataclass(frozen=True)
class _Spelling:
    """Lets weights be written by their name alone, `init_from: hf:gpt2`; nanoGPT's `gpt2-xl` means `hf:gpt2-xl`."""

    def expand(self, value: Any) -> Any:
        if isinstance(value, dict | Weights) or value == "scratch":
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"expected scratch, hf:NAME, a folder of weights or a run, got {value!r}")
        return {"weights": f"{HUB}{value}" if value in GPT2_NAMES else value}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [*handler(schema).get("oneOf", []), {"type": "string"}]}


InitFrom = Annotated[
    Annotated[Literal["scratch"], Tag("scratch")] | Annotated[Weights, Tag("file")], Discriminator(_arm), _Spelling()
]


@functools.cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(InitFrom)


def asked_weights(value: Any) -> Weights | None:
    """The weights that an `init_from` not yet validated names; None for scratch and for what validation refuses."""
    if value in (None, "scratch"):
        return None
    try:
        found = _adapter().validate_python(value)
    except ValidationError:
        return None
    return found if isinstance(found, Weights) else None
