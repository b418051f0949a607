"""The `runtime.tracker` section: which tool mirrors a run's curve. Never part of a run's identity."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from nanogpt.config.section import Section, Shorthand


def _words(value: Any) -> Any:
    """`tags: baseline, muon` is how people write two words on a command line."""
    if isinstance(value, str):
        return tuple(word for word in map(str.strip, value.split(",")) if word)
    return tuple(value) if isinstance(value, list) else value


def _named(value: Any) -> Any:
    """YAML reads `off` and `no` as false, and nothing as null: which of the kinds is meant, a person has to say."""
    if value is None or isinstance(value, bool):
        raise ValueError(f"expected none, wandb, tensorboard, trackio or custom, got {value!r}")
    return value


def _factory(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name):
        raise ValueError(f"expected module:Class, as in my_package.trackers:MyTracker, got {name!r}")
    return name


Name = Annotated[str, Field(min_length=1, max_length=128)]


class NoTracker(Section):
    """Our own files alone."""

    kind: Literal["none"] = "none"


class WandB(Section):
    """Weights & Biases."""

    kind: Literal["wandb"] = "wandb"
    project: Name = "nanogpt-scaling"
    entity: Name | None = Field(None, description="User or team; default: that of the API key.")
    group: Name | None = Field(None, description="Default: the study's name.")
    tags: Annotated[tuple[Name, ...], BeforeValidator(_words)] = ()
    upload: Literal["live", "later"] = Field(
        "live", description="live: while it trains, where there are a key and a network; later: by `experiments sync`."
    )


class TensorBoard(Section):
    """Event files in the folder of the run."""

    kind: Literal["tensorboard"] = "tensorboard"


class Trackio(Section):
    """Trackio's local database."""

    kind: Literal["trackio"] = "trackio"
    project: Name = "nanogpt-scaling"
    group: Name | None = Field(None, description="Default: the study's name.")


class CustomTracker(Section):
    """A class of your own, see docs/trackers.md."""

    kind: Literal["custom"] = "custom"
    factory: Annotated[str, AfterValidator(_factory)] = Field(description="module:Class of a nanogpt.trackers.Tracker.")


AnyTracker = NoTracker | WandB | TensorBoard | Trackio | CustomTracker
TrackerSection = Annotated[AnyTracker, Field(discriminator="kind"), Shorthand("kind", "none"), BeforeValidator(_named)]
