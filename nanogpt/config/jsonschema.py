"""JSON schema of config files, so that editors complete and check them."""

from typing import Any

from nanogpt.config.keys import known_paths, short_names
from nanogpt.config.run import Config


def config_schema() -> dict[str, Any]:
    """Schema (draft 2020-12) of a config file: every key optional, since `base:` may supply it."""
    schema = Config.model_json_schema()
    for part in [schema, *schema["$defs"].values()]:
        part.pop("required", None)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "nanoGPT Scaling training config"
    # Dotted names, unique endings of them and nanoGPT's flags may stand at the top level too; their values are checked
    # when the file is read.
    short = {name: {"description": f"Short for {meaning}."} for name, meaning in short_names().items()}
    dotted: dict[str, Any] = {name: {} for name in known_paths() if "." in name}
    schema["properties"] = {
        "base": {"type": "string", "description": "A config file that this one is laid over."},
        **schema["properties"],
        **dotted,
        **short,
    }
    return schema
