"""`python -m nanogpt prepare NAME`: makes a corpus's files, checks them, or removes exactly the files it made."""

from dataclasses import replace
from pathlib import Path

from nanogpt.config.data import ZipfMixture
from nanogpt.config.errors import UserError
from nanogpt.config.runtime import Runtime
from nanogpt.data.binfiles import file_sha256, read_meta
from nanogpt.data.corpora import CORPORA, FROM_HUB, OWN_FILES
from nanogpt.data.making import LOCK, WORK, clear, known_hashes, make
from nanogpt.data.manifest import MANIFEST, Manifest, read_manifest, verify
from nanogpt.data.opening import data_root, generate_zipf, zipf_folder
from nanogpt.data.plan import DOWNLOADS, Plan, Request, make_plan
from nanogpt.data.shakespeare import prepare as prepare_shakespeare
from nanogpt.data.tokenizers import SHORT


def prepare(name: str, source: Path | None = None, data_dir: str | None = None, clean: bool = False) -> str:
    """Prepare (or clean) a corpus by name, in its customary way, and return the line that says what was done."""
    request = Request(name, data_root(Runtime(data_dir=data_dir)), None if source is None else str(source))
    return clean_corpus(request) if clean else prepare_corpus(request)


def prepare_corpus(request: Request) -> str:
    """Prepare a corpus and return the line that says what was made. Raises UserError for what cannot be."""
    if request.name in OWN_FILES:
        return _prepare_own(request)
    plan = make_plan(request, known_hashes)
    manifest, is_new = make(plan, request.workers)
    return _line(plan, manifest, is_new)


def _prepare_own(request: Request) -> str:
    asked = replace(request, source=None, workers=1)
    if asked != Request(request.name, request.root):
        raise UserError(f"prepare: {request.name} has its own form: only --from, --verify and --clean apply to it")
    if request.name == "shakespeare_char":
        folder = request.root / request.name
        meta = prepare_shakespeare(folder, None if request.source is None else Path(request.source))
    elif request.source is not None:
        raise UserError("prepare: zipf_mixture is generated, not read; --from does not apply")
    else:
        folder = generate_zipf(ZipfMixture(), request.root)
        meta = read_meta(folder)
    sizes = f"{meta['train_tokens']:,} training and {meta['val_tokens']:,} validation tokens"
    return f"{folder}: {sizes}, vocabulary {meta['vocab_size']}"


def _line(plan: Plan, manifest: Manifest, is_new: bool) -> str:
    words = {"train": "training", "val": "validation", "test": "test"}
    sizes = ", ".join(
        f"{files.tokens:,} {words[split]} tokens in {files.documents:,} document{'s' * (files.documents != 1)}"
        for split, files in manifest.splits.items()
    )
    how = f"split {manifest.source['splits']}, vocabulary {manifest.tokenizer.n_vocab:,}, {manifest.layout}'s files"
    return f"{plan.folder}: {'' if is_new else 'already prepared: '}{sizes}; {how}"


def verify_corpus(request: Request) -> tuple[str, bool]:
    """Read every byte of a prepared corpus: what to say, and whether all is as it was prepared."""
    folders = _folders(request)
    problems, lines = [], []
    for folder in folders:
        manifest = read_manifest(folder)
        if manifest is not None:
            found = verify(folder, manifest)
        elif request.name == "shakespeare_char":
            hashes = read_meta(folder).get("sha256", {})
            found = [
                f"{folder / name}: damaged, or changed since it was prepared" for name, sha256 in hashes.items()
                if not (folder / name).exists() or file_sha256(folder / name) != sha256
            ]  # fmt: skip
        else:
            raise UserError(f"{folder}: has no manifest to verify it by")
        problems += found
        lines += [] if found else [f"{folder}: every byte is as it was prepared"]
    return "\n".join(problems + lines), not problems


def clean_corpus(request: Request) -> str:
    """Remove what prepare has made of a corpus, what was begun, and what was downloaded for it; nothing else."""
    if request.name in OWN_FILES:
        is_zipf = request.name == "zipf_mixture"
        return _clean_by_meta(zipf_folder(ZipfMixture(), request.root) if is_zipf else request.root / request.name)
    folders = _folders(request, begun=True)
    if len(folders) > 1:
        raise UserError(f"--clean: {', '.join(folder.name for folder in folders)}: say which one with --tokenizer")
    lines = [_clean(folder) for folder in folders]
    downloads = request.root / DOWNLOADS / request.name
    fetched = (
        [name for name in CORPORA[request.name].downloads if (downloads / name).is_file()]
        if request.name in CORPORA
        else []
    )
    for name in fetched:
        (downloads / name).unlink()
    if fetched:
        lines.append(_told(downloads, fetched))
        _remove_empty(downloads.parent)
    return "\n".join(lines)


def _folders(request: Request, begun: bool = False) -> list[Path]:
    """The prepared folders that a name means: itself, or its own with any tokenizer. Raises UserError for none."""
    if request.name in OWN_FILES:
        return [request.root / request.name]
    names = [request.name]
    if request.name.startswith(FROM_HUB) or request.name in CORPORA:
        names.append(request.name.removeprefix(FROM_HUB).replace("/", "--"))
        names += [f"{name}-{request.subset}" for name in names] + [f"{name}--{request.subset}" for name in names]
    wanted = SHORT.get(request.tokenizer, request.tokenizer) if request.tokenizer else "*"
    candidates = [request.root / name for name in names]
    candidates += [path for name in names for path in sorted(request.root.glob(f"{name}.{wanted}"))]
    marks = (MANIFEST, WORK) if begun else (MANIFEST,)
    found = [folder for folder in dict.fromkeys(candidates) if any((folder / mark).exists() for mark in marks)]
    if not found:
        raise UserError(f"{request.root}: no corpus {request.name!r} prepared there")
    return found


def _clean(folder: Path) -> str:
    manifest = read_manifest(folder)
    if (folder / WORK).is_dir():
        clear(folder / WORK)
        (folder / WORK / LOCK).unlink(missing_ok=True)
        _remove_empty(folder / WORK)
    removed = [name for name in (manifest.files if manifest else ()) if (folder / Path(name).name).is_file()]
    for name in removed:
        (folder / Path(name).name).unlink()
    return _told(folder, removed)


def _clean_by_meta(folder: Path) -> str:
    """Remove the files that meta.json lists, and the folder when nothing else is in it."""
    if not (folder / "meta.json").exists():
        return f"{folder}: nothing to clean"
    names = [name for name in read_meta(folder).get("files", []) if Path(name).name == name]
    removed = [name for name in names if (folder / name).is_file()]
    for name in removed:
        (folder / name).unlink()
    return _told(folder, removed)


def _told(folder: Path, removed: list[str]) -> str:
    left = sorted(entry.name for entry in folder.iterdir())
    if not left:
        folder.rmdir()
    shown = ", ".join(removed[:8]) + (f" and {len(removed) - 8} more" if len(removed) > 8 else "")
    return f"{folder}: removed {shown or 'what was begun'}" + (f"; left {', '.join(left)}" if left else "")


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
