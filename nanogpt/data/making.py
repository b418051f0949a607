"""Makes what a plan says, in a folder of its own until it is whole; a kill at any moment costs a few seconds of work.

All is made in CORPUS/.partial. Pieces are encoded in parallel and written in order, and every few seconds progress.json
notes how far the files are good: a later call cuts off the rest and goes on, so the files come out the same whatever
happened. In the end they are moved to their place, the manifest last.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt.config.errors import UserError
from nanogpt.data.alphabets import Characters, Tokenizer
from nanogpt.data.binfiles import GPT2_VOCAB, file_sha256, nanogpt_meta, write_pickle
from nanogpt.data.bpe import bpe_size
from nanogpt.data.display import Display
from nanogpt.data.manifest import (
    MANIFEST,
    Manifest,
    Split,
    TokenizerFacts,
    check_sizes,
    content_hash,
    read_manifest,
    write_manifest,
)
from nanogpt.data.pieces import documents
from nanogpt.data.plan import Plan
from nanogpt.data.shardwriter import SHARD, CannotGoOn, Format, SplitWriter
from nanogpt.data.sources import pieces
from nanogpt.data.splitting import KEYS, ByFile, ByHash, FirstShard, Splitter
from nanogpt.data.tokenizers import TOKENIZER, read_tokenizer, train_bpe, train_char, write_tokenizer
from nanogpt.data.tokenizing import Encoding, Stopped, encoding_pool
from nanogpt.record import read_json, to_json, write_atomic

WORK = ".partial"
PLAN, PROGRESS, REPLACED, LOCK = "plan.json", "progress.json", "replaced.json", "lock"
OURS = {PLAN, PROGRESS, REPLACED, LOCK, MANIFEST, TOKENIZER, KEYS, "meta.json", "meta.pkl"}
NOTE_SECONDS = 1.0
TRAINING_BYTES = 2**28  # of text that an encoding is trained on: a quarter of a gigabyte, spread over the corpus
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def make(plan: Plan, workers: int) -> tuple[Manifest, bool]:
    """Prepare the corpus of a plan; False beside the manifest when it was there already.

    Raises UserError for texts that cannot be read, and for another process at work on the same corpus.
    """
    from filelock import FileLock, Timeout

    work = plan.folder / WORK
    _refuse_foreign_files(plan)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / LOCK, timeout=0):
            try:
                return _make(plan, work, workers)
            except Stopped:
                raise
            except UserError:
                clear(work)  # it would come to this again
                raise
    except Timeout:
        raise UserError(f"{plan.folder}: another process is preparing it") from None
    finally:
        tidy(plan.folder)


def _refuse_foreign_files(plan: Plan) -> None:
    """Never write over files that lie there without a manifest."""
    if (plan.folder / MANIFEST).exists() or (plan.folder / WORK / MANIFEST).exists() or not plan.folder.is_dir():
        return
    foreign = sorted(path.name for path in plan.folder.iterdir() if SHARD.fullmatch(path.name) or path.name in OURS)
    if foreign:
        raise UserError(f"{plan.folder}: {foreign[0]} lies there, and prepare has not made it; move the folder away")


def _make(plan: Plan, work: Path, workers: int) -> tuple[Manifest, bool]:
    if (work / MANIFEST).exists():
        publish(work, plan.folder)  # whatever plan it was of: its files may be half in place
    present = _whole(plan)
    if present is not None:
        clear(work)
        return present, False
    progress = _noted(plan, work)
    tokenizer = _tokenizer(plan, work)
    while (splitter := _encode_all(plan, work, tokenizer, progress, workers)) is None:
        progress = read_json(work / PROGRESS)
    _refuse_changed_files(plan)
    manifest = _describe(plan, work, tokenizer, splitter)
    for name in manifest.files[:-1]:
        with (work / name).open("rb") as file:
            os.fsync(file.fileno())  # the manifest says that all is whole: not before the disk has it
    write_manifest(work, manifest)
    publish(work, plan.folder)
    return manifest, True


def _refuse_changed_files(plan: Plan) -> None:
    for file in plan.files:
        state = Path(file.path).stat()
        if (state.st_size, state.st_mtime_ns) != (file.size, file.mtime_ns):
            raise UserError(f"{file.path}: changed while it was read; run again when it is at rest")


def _whole(plan: Plan) -> Manifest | None:
    """The manifest of just this plan, if its files are all there."""
    try:
        manifest = read_manifest(plan.folder)
        if manifest is not None:
            check_sizes(plan.folder, manifest)
    except UserError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return None
    return manifest if manifest is not None and manifest.source.get("plan") == plan.fingerprint else None


def format_of(plan: Plan, tokenizer: Tokenizer) -> Format:
    """The files' format: two bytes for a token as long as the vocabulary allows it."""
    return Format(plan.layout, "uint16" if tokenizer.n_vocab <= 2**16 else "uint32", plan.shard_tokens, plan.prefix)


def _noted(plan: Plan, work: Path) -> dict[str, Any]:
    """What an earlier call with the same plan has noted; without one the folder is emptied, and the plan written."""
    with contextlib.suppress(UserError):
        if read_json(work / PLAN)["fingerprint"] == plan.fingerprint:
            return read_json(work / PROGRESS) if (work / PROGRESS).exists() else {}
    clear(work)
    files = {file.path: {"bytes": file.size, "mtime_ns": file.mtime_ns, "sha256": file.sha256} for file in plan.files}
    write_atomic(work / PLAN, to_json({"fingerprint": plan.fingerprint, "files": files}))
    return {}


def known_hashes(folder: Path) -> dict[str, Any]:
    """The hashes of sources that an interrupted call has left, by path."""
    with contextlib.suppress(UserError):
        return read_json(folder / WORK / PLAN).get("files", {})
    return {}


def clear(work: Path) -> None:
    """Remove what `prepare` leaves in its own folder, but for the lock, and the folder when nothing else is in it."""
    if not work.is_dir():
        return
    for path in work.iterdir():
        if path.name in OURS - {LOCK} or SHARD.fullmatch(path.name) or path.name.endswith((".tmp.json", ".tmp.pkl")):
            path.unlink()


def tidy(folder: Path) -> None:
    """Remove the work folder when nothing but its lock is left in it, and then the corpus's when it is empty, too."""
    work = folder / WORK
    with contextlib.suppress(OSError):  # something is in it
        if [path.name for path in work.iterdir()] == [LOCK]:
            (work / LOCK).unlink()
        work.rmdir()
        folder.rmdir()


def _tokenizer(plan: Plan, work: Path) -> Tokenizer:
    """The tokenizer, in the work folder for the workers; one that is trained here is trained once."""
    if (work / TOKENIZER).exists():
        return read_tokenizer(work)
    tokenizer = plan.tokenizer or _trained(plan)
    write_tokenizer(tokenizer, work)
    return tokenizer


def _trained(plan: Plan) -> Tokenizer:
    print(f"{plan.name}: making the tokenizer {plan.spec}", file=sys.stderr)
    size = bpe_size(plan.spec)
    return (
        train_char(_training_texts(plan, 1)) if size is None else train_bpe(_training_texts(plan, _stride(plan)), size)
    )


def _stride(plan: Plan) -> int:
    """Which pieces a tokenizer is trained on: every so many-th."""
    total = plan.total
    return 1 + total // TRAINING_BYTES if total else 1


def _training_texts(plan: Plan, stride: int) -> Iterator[str]:
    """Texts for a trained tokenizer: of the training split alone, where it is known; all characters for `char`."""
    limit = int((plan.val_share or 0) * 2**64) if plan.splitting == "hash" and plan.spec != "char" else 0
    left = TRAINING_BYTES if plan.spec != "char" else 2**63
    for number, piece in enumerate(pieces(plan.sources, plan.reading)):
        if number % stride or (piece.split not in (None, "train") and plan.spec != "char"):
            continue
        for document in documents(piece, plan.reading):
            if document.key >= limit:
                yield document.text
                left -= len(document.text)
        if left <= 0:
            return


def _splitter(plan: Plan, work: Path, noted: dict[str, Any]) -> Splitter:
    if plan.splitting == "hash":
        assert plan.val_share is not None
        return ByHash(plan.val_share, noted)
    if plan.splitting == "first_shard":
        assert plan.shard_tokens is not None
        return FirstShard(plan.shard_tokens, work, noted)
    return ByFile()


def _encode_all(
    plan: Plan, work: Path, tokenizer: Tokenizer, progress: dict[str, Any], workers: int
) -> Splitter | None:
    """Encode and write what is left; None when all has to be done again, as the new note says."""
    how = format_of(plan, tokenizer)
    noted = progress.get("splits", {})
    try:
        writers = {split: SplitWriter(work, split, how, noted.get(split)) for split in SPLITS}
        splitter = _splitter(plan, work, progress.get("splitter", {}))
    except CannotGoOn:
        print(f"{plan.name}: what was begun is damaged: starting anew", file=sys.stderr)
        progress, writers = {}, {split: SplitWriter(work, split, how) for split in SPLITS}
        splitter = _splitter(plan, work, {})
    _remove_later_files(work, progress.get("splits", {}), how)
    run = _Run(plan, tokenizer, writers, splitter, progress)
    try:
        run.encode(work, Encoding(str(work), how.dtype, plan.separate, plan.reading), workers)
    finally:
        for writer in writers.values():
            writer.abandon()
        splitter.close()
    again = splitter.again()
    if again is not None:
        write_atomic(work / PROGRESS, to_json({"splitter": again}))
        return None
    empty = [split for split in ("train", "val") if not writers[split].tokens]
    if empty:
        raise UserError(f"{plan.name}: the {empty[0]} split has no text")
    return splitter


def _remove_later_files(work: Path, noted: dict[str, Any], how: Format) -> None:
    """Files of tokens that no note speaks of."""
    known = {shard["file"] for note in noted.values() for shard in note["shards"]}
    known |= {how.file(split, len(noted[split]["shards"])) for split in SPLITS if noted.get(split, {}).get("open")}
    for path in work.iterdir():
        if SHARD.fullmatch(path.name) and path.name not in known:
            path.unlink()


class _Run:
    """One call's work: pieces into files, noted from time to time."""

    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        writers: dict[Split, SplitWriter],
        splitter: Splitter,
        progress: dict[str, Any],
    ) -> None:
        self._plan, self._tokenizer, self._writers, self._splitter = plan, tokenizer, writers, splitter
        source, place = progress.get("at", (0, 0))
        self._at: tuple[int, int] = (source, place)
        self._weight: int = progress.get("weight", 0)
        self._empty: int = progress.get("empty", 0)

    def encode(self, work: Path, how: Encoding, workers: int) -> None:
        left = pieces(self._plan.sources, self._plan.reading, self._at)
        tokens = sum(writer.tokens for writer in self._writers.values())
        noted = time.monotonic()
        display = Display(self._plan.folder.name, self._plan.total, self._weight, tokens)
        with encoding_pool(how, self._tokenizer, workers) as pool, display, self._noting(work):
            for piece, encoded in pool.map(left):
                dtype = np.dtype(how.dtype)
                for split, mask in self._splitter.assign(piece, encoded).items():
                    writer = self._writers[split]
                    if mask.all():
                        writer.append(encoded.tokens)
                    elif mask.any():
                        ids = np.frombuffer(encoded.tokens, dtype=dtype)
                        writer.append(ids[np.repeat(mask, encoded.lengths)].tobytes())
                    writer.documents += int((mask & encoded.begins).sum())
                    writer.text_bytes += int(encoded.text_bytes[mask].sum())
                self._empty += encoded.empty
                self._at, self._weight = piece.after, self._weight + piece.weight
                display.advance(piece.weight, int(encoded.lengths.sum()))
                if time.monotonic() - noted > NOTE_SECONDS:
                    self._note(work)
                    noted = time.monotonic()
        for writer in self._writers.values():
            writer.close_shard()
        self._note(work)

    @contextlib.contextmanager
    def _noting(self, work: Path) -> Iterator[None]:
        """Note how far all is good when it stops in between: at Ctrl-C, without a network."""
        try:
            yield
        except (KeyboardInterrupt, Stopped):
            self._note(work)
            raise

    def _note(self, work: Path) -> None:
        note = {
            "at": self._at, "weight": self._weight, "empty": self._empty, "splitter": self._splitter.note(),
            "splits": {split: writer.note() for split, writer in self._writers.items()},
        }  # fmt: skip
        write_atomic(work / PROGRESS, to_json(note), durable=False)


def _describe(plan: Plan, work: Path, tokenizer: Tokenizer, splitter: Splitter) -> Manifest:
    """The manifest, and the files that nanoGPT's tools look for."""
    progress = read_json(work / PROGRESS)
    how = format_of(plan, tokenizer)
    splits = {split: SplitWriter(work, split, how, note).files() for split, note in progress["splits"].items()}
    splits = {split: files for split, files in splits.items() if files.shards}
    facts = TokenizerFacts(
        name=tokenizer.name, fingerprint=tokenizer.fingerprint, n_vocab=tokenizer.n_vocab, eot=tokenizer.eot
    )
    extras = [TOKENIZER]
    if plan.layout == "nanogpt":
        extras += _write_meta(work, tokenizer, {split: files.tokens for split, files in splits.items()},
                              splits["val"].text_bytes / splits["val"].tokens)  # fmt: skip
    source = {
        **plan.facts,
        "files": [file.facts() for file in plan.files],
        "val_share": plan.val_share,
        "empty_documents": progress["empty"],
        "repeated_documents": getattr(splitter, "dropped", 0),
        "end_of_text": "before each document" if plan.separate and tokenizer.eot is not None else None,
        "plan": plan.fingerprint,
    }
    shards = [shard.file for files in splits.values() for shard in files.shards]
    return Manifest(
        name=plan.name,
        source=source,
        tokenizer=facts,
        layout=plan.layout,
        dtype=how.dtype,
        splits=splits,
        content=content_hash(splits, facts),
        files=(*shards, *extras, MANIFEST),
        sha256={name: file_sha256(work / name) for name in extras},
    )


def _write_meta(work: Path, tokenizer: Tokenizer, tokens: dict[Split, int], bytes_per_token: float) -> list[str]:
    """meta.json, and nanoGPT's own meta.pkl for vocabularies other than GPT-2's, which it takes for granted."""
    meta: dict[str, Any] = {
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.n_vocab,
        **{f"{split}_tokens": count for split, count in tokens.items()},
        "val_bytes_per_token": bytes_per_token,
    }
    characters = list(tokenizer.characters) if isinstance(tokenizer, Characters) else None
    if characters is not None:
        meta["itos"] = characters
    write_atomic(work / "meta.json", to_json(meta))
    if tokenizer.n_vocab == GPT2_VOCAB:
        return ["meta.json"]
    write_pickle(work, nanogpt_meta(tokenizer.n_vocab, characters))
    return ["meta.json", "meta.pkl"]


def publish(work: Path, folder: Path) -> None:
    """Move a finished corpus to its place. Killed anywhere in between, the same call again ends it."""
    manifest = read_manifest(work)
    assert manifest is not None
    if (folder / MANIFEST).exists():
        # While it is away nobody takes the files for what it says.
        (folder / MANIFEST).replace(work / REPLACED)
    if (work / REPLACED).exists():
        with contextlib.suppress(UserError):
            earlier = read_json(work / REPLACED).get("files", [])
            for name in {Path(name).name for name in earlier} - set(manifest.files):
                (folder / name).unlink(missing_ok=True)
    for name in (*manifest.files[:-1], MANIFEST):
        if (work / name).exists():
            (work / name).replace(folder / name)
    clear(work)
