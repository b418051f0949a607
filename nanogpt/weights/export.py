"""`python -m nanogpt export`: a trained model as a folder that transformers loads, all of it or nothing."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanogpt import __version__
from nanogpt.config import UserError, os_reason, run_id
from nanogpt.data.alphabets import Tokenizer
from nanogpt.data.binfiles import GPT2_VOCAB, NANOGPT_VOCAB
from nanogpt.data.hftokenizer import write_hf
from nanogpt.trained import Trained
from nanogpt.weights.folding import flattened
from nanogpt.weights.layout import Flat, Layout
from nanogpt.weights.layouts import layout_for
from nanogpt.weights.place import CONFIG, SAFETENSORS
from nanogpt.weights.tensors import write_safetensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written where, and what had to be changed for it, a line each."""

    folder: Path
    layout: Layout
    parameters: int
    notes: tuple[str, ...]


def export(trained: Trained, folder: Path, dtype: str = "float32", vocab_size: int | None = None) -> Exported:
    """Write the model into a new folder: model.safetensors, config.json, generation_config.json, and its tokenizer.

    `vocab_size` says how many tokens there are where the tokenizer cannot: rows beyond it only pad the vocabulary.
    Raises UserError, before anything is written, for a folder that is not empty, for a model that no layout holds (it
    names everything that stands in the way), for a vocabulary that lacks tokens of the tokenizer, and for values that
    the type cannot hold.
    """
    _check_empty(folder)
    layout = layout_for(trained.config.model)
    tokenizer, notes = _tokenizer(trained)
    flat = flattened(trained.model, _vocabulary(trained, tokenizer, vocab_size))
    tensors = {name: _cast(name, tensor, dtype) for name, tensor in layout.to_theirs(flat).items()}
    origin = {"version": __version__, "run": run_id(trained.config), "step": trained.step}
    contents = {
        CONFIG: config_json(layout, flat, tokenizer, dtype) | {"nanogpt_scaling": origin},
        "generation_config.json": _ends(tokenizer),
    }
    with _whole(folder) as draft:
        write_safetensors(draft / SAFETENSORS, tensors)
        for name, content in contents.items():
            (draft / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if tokenizer is not None:
            write_hf(tokenizer, draft)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return Exported(folder, layout, parameters, (*flat.notes, *layout.notes(flat.model), *notes))


def config_json(layout: Layout, flat: Flat, tokenizer: Tokenizer | None, dtype: str = "float32") -> dict[str, Any]:
    """The content of config.json."""
    return {
        "model_type": layout.name,
        "architectures": [layout.architecture],
        "vocab_size": flat.model.vocab_size,
        "tie_word_embeddings": flat.model.tie_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # what older versions of transformers read
        **layout.config(flat.model),
        **_ends(tokenizer),
    }


def _ends(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The token that ends a text and begins the next one; null, since left out would mean GPT-2's."""
    end = tokenizer.eot if tokenizer is not None else None
    return {"bos_token_id": end, "eos_token_id": end}


def _tokenizer(trained: Trained) -> tuple[Tokenizer | None, list[str]]:
    try:
        found = trained.vocabulary()
    except UserError as problem:
        return None, [f"no tokenizer written: {problem}"]
    if found.tokenizer is not None:
        return found.tokenizer, []
    return None, [f"no tokenizer written: {found.note or 'tokens stand for no text'}"]


def _vocabulary(trained: Trained, tokenizer: Tokenizer | None, given: int | None) -> int:
    """How many tokens there are without those that only pad."""
    size = trained.config.model.vocab_size
    assert isinstance(size, int)
    if given is not None:
        if given > size:
            raise UserError(f"export: --vocab_size {given}: the model has {size} tokens")
        if tokenizer is not None and given < tokenizer.n_vocab:
            reads = f"the tokenizer {tokenizer.name} has {tokenizer.n_vocab} tokens, which are no padding"
            raise UserError(f"export: --vocab_size {given}: {reads}")
        return given
    if tokenizer is not None:
        return min(size, tokenizer.n_vocab)
    return GPT2_VOCAB if size == NANOGPT_VOCAB else size


def _cast(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    found = tensor.to(DTYPES[dtype])
    if not torch.isfinite(found).all():
        what = (
            f"{dtype} cannot hold its values" if torch.isfinite(tensor).all() else "it holds values that are no number"
        )
        raise UserError(f"export: {name}: {what}")
    return found


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export: {folder}: not empty; give a new folder, nothing is written over")


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A draft beside the folder that becomes it at the end; of what fails on the way nothing is left."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"export: {folder}: cannot be made: {os_reason(error, folder)}") from None
    try:
        yield draft
        mask = _umask()
        draft.chmod(0o777 & ~mask)
        for file in draft.iterdir():  # safetensors makes its own for nobody else
            file.chmod(0o666 & ~mask)
        if folder.is_dir():
            folder.rmdir()
        os.replace(draft, folder)
    except OSError as error:
        raise UserError(f"export: {folder}: cannot be written: {os_reason(error, folder)}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def summary(done: Exported) -> list[str]:
    """What the command prints."""
    first = f"{done.folder}: {done.layout.architecture}, {done.parameters:,} numbers in {SAFETENSORS}"
    return [first, *(f"  {note}" for note in done.notes)]
