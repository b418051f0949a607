"""Tensors from and to transformers' files: safetensors, or pickles read without executing anything in them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from nanogpt.config.errors import UserError
from nanogpt.weights.layout import Tensors

NEEDS = "pip install 'nanogpt-scaling[hf]'"


def read_tensors(files: Sequence[Path]) -> Tensors:
    """All tensors of the files, on the CPU. Raises UserError for a damaged one."""
    found: Tensors = {}
    for file in files:
        found |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    return found


def _read_safetensors(file: Path) -> Tensors:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{file}: the package safetensors is missing: {NEEDS}") from None
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: damaged, or no safetensors file: {error}") from None


def _read_pickle(file: Path) -> Tensors:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of other content may raise nearly anything in the unpickler
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file}: cannot be read as weights alone: {why}") from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"{file}: expected a mapping of names to tensors")
    return found


def write_safetensors(file: Path, tensors: Tensors) -> None:
    """Write model.safetensors, the same bytes for the same tensors: more than one entry of metadata has no order there.

    Raises UserError without the package, OSError for a full disk.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise UserError(f"export: the package safetensors is missing: {NEEDS}") from None
    try:
        save_file(_apart(tensors), file, {"format": "pt"})
    except SafetensorError as error:  # how it reports what the file system refused
        raise OSError(f"{file}: {error}") from None


def _apart(tensors: Tensors) -> Tensors:
    """Contiguous tensors that share no memory, which the format refuses: unrolled blocks do, as long as they can."""
    found: Tensors = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        found[name] = whole.clone() if whole.data_ptr() in seen else whole
        seen.add(whole.data_ptr())
    return found
