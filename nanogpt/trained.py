"""A trained model by its place: a run's folder (of `nanogpt train` or of a study), one checkpoint file, or weights
that transformers saved (a folder, or `hf:NAME`)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanogpt import checkpoint
from nanogpt.config import Config, UserError, run_id
from nanogpt.config.errors import did_you_mean
from nanogpt.config.layers import Layers
from nanogpt.config.runtime import Runtime
from nanogpt.config.training import Train
from nanogpt.config.weights import Weights
from nanogpt.configfile import build_config, lay_overrides, load_layers
from nanogpt.data.alphabets import Tokenizer
from nanogpt.data.vocabulary import Vocabulary, read_vocabulary
from nanogpt.hardware import resolve_device, torch_device
from nanogpt.model import GPT, build_model
from nanogpt.weights.initial import fitted, read_hf
from nanogpt.weights.layouts import model_of
from nanogpt.weights.place import Place, find, is_hf
from nanogpt.weights.vocabulary import weights_vocabulary

SHOWN = 3  # names of runs in a message


@dataclass(frozen=True)
class Trained:
    """A resolved config and its model in evaluation mode, with the weights of one checkpoint, or of `weights`.

    `name` is the place as it was given. `step` is the checkpoint's; `damaged` says which ones further ahead were
    passed over, and why. Where the model is not of a run but of `weights`, its config says nothing of a corpus.
    """

    config: Config
    model: GPT
    step: int
    damaged: tuple[str, ...] = ()
    name: str = ""
    weights: Place | None = None

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the run's corpus or of the weights; None where tokens stand for no text, or it is not to be
        had (`vocabulary().note` says why)."""
        return self.vocabulary().tokenizer

    def vocabulary(self, ranks: Path | None = None) -> Vocabulary:
        """What the token ids mean: the tokenizer's text, or only numbers where there is none.

        `ranks` are those of GPT-2 where nothing else has them. Raises UserError where the run's corpus is gone, or has
        become one with more tokens than the model.
        """
        if self.weights is not None:
            return weights_vocabulary(self.weights, ranks)
        found, size = read_vocabulary(self.config.data, self.config.runtime, ranks), self.config.model.vocab_size
        assert isinstance(size, int)
        if found.meaningful > size:
            raise UserError(
                f"{self.name or 'the run'}: its corpus has {found.meaningful:,} kinds of tokens, the model {size:,}: "
                "it was trained on another corpus"
            )
        return found


def load_trained(place: Path | str, device: str | None = None) -> Trained:
    """The model that a run's folder (its furthest whole checkpoint), a checkpoint file or transformers' weights hold.

    `device` replaces the run's own. Raises UserError when there is no config or no whole checkpoint, when the two do
    not belong together, and for a device that is not there.
    """
    name = str(place)
    if is_hf(name):
        return _of_weights(name, device)
    return replace(_of_run(Path(name), device), name=name)


def _of_weights(name: str, device: str | None) -> Trained:
    """In float32, whatever the device could do: as transformers computes by default."""
    place = find(name)
    model = model_of(place.described(), str(place.config))
    init_from = Weights(weights=name, sha256=place.sha256())
    train, runtime = Train(max_iters=1, precision="fp32"), Runtime(device=resolve_device(device or "auto"))
    config = Config(model=model, train=train, init_from=init_from, runtime=runtime)
    gpt = build_model(config, torch_device(runtime.device, runtime.threads))
    gpt.load_state_dict(fitted(read_hf(place), config, name))
    return Trained(config, gpt.eval(), step=0, name=name, weights=place)


def _of_run(place: Path, device: str | None) -> Trained:
    if place.is_dir():
        config = _config(_layers_of_folder(place), device, place)
        loaded = checkpoint.load_latest(place)
        if loaded is None:
            raise UserError(f"{place}: the run left no checkpoint to load")
        return _build(config, loaded.state, loaded.file.path, loaded.damaged)
    if not place.is_file():
        raise UserError(f"{place}: no such run or checkpoint{_nearest(place)}")
    state = checkpoint.load_file(place)
    return _build(_config(_layers_of_file(place, state), device, place), state, place)


def _layers_of_folder(folder: Path) -> Layers:
    if (folder / "config.yaml").is_file():
        return load_layers(folder / "config.yaml")
    runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    if runs:
        names = ", ".join(runs[:SHOWN]) + (f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else "")
        raise UserError(f"{folder}: holds {len(runs)} run{'s' if len(runs) > 1 else ''}; name one of them: {names}")
    raise UserError(f"{folder}: no run there (a run's folder holds config.yaml)")


def _layers_of_file(file: Path, state: dict[str, Any]) -> Layers:
    """The config beside a checkpoint, or of the run in whose attempts it lies, else the one inside it."""
    if (beside := checkpoint.config_beside(file)) is not None:
        return load_layers(beside)
    if not isinstance(state.get("config"), dict):
        raise UserError(f"{file}: no config.yaml beside it, and none inside: it was saved by an older version")
    layers = Layers()
    layers.lay(state["config"], {}, str(file))
    return layers


def _config(layers: Layers, device: str | None, place: Path) -> Config:
    if device is not None:
        lay_overrides(layers, [f"--runtime.device={device}"])
    return build_config(layers, str(place))


def _build(config: Config, state: dict[str, Any], file: Path, damaged: tuple[str, ...] = ()) -> Trained:
    if state["id"] != run_id(config):
        raise UserError(f"{file}: belongs to run {state['id']}, not to {run_id(config)}, whose config.yaml is there")
    model = build_model(config, torch_device(config.runtime.device, config.runtime.threads))
    model.load_state_dict(state["model"])
    return Trained(config, model.eval(), state["progress"]["step"], damaged)


def _nearest(place: Path) -> str:
    """The entries beside a missing path that it may mean: those it is the label of, else the nearest names."""
    names = sorted(entry.name for entry in place.parent.iterdir()) if place.parent.is_dir() else []
    labelled = [name for name in names if name.startswith(f"{place.name}.")]
    if labelled:
        return f"; with its id: {', '.join(labelled[:SHOWN])}"
    hint = did_you_mean(place.name, names)
    return hint if "did you mean" in hint else ""
