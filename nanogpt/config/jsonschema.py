"""JSON schema of config files, so that editors complete and check them."""

from typing import Any

from nanogpt.config.run import Config


def config_schema() -> dict[str, Any]:
    """Schema (draft 2020-12) of a config file: every key optional, since `base:` may supply it."""
    schema = Config.model_json_schema()
    for part in [schema, *schema["$defs"].values()]:
        part.pop("required", None)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "nanoGPT Scaling training config"
    schema["properties"] = {
        "base": {"type": "string", "description": "A config file that this one is laid over."},
        **schema["properties"],
    }
    # Unique leaf names, dotted names and nanoGPT's flags may stand at the top level; the program checks those.
    schema["additionalProperties"] = True
    return schema
