"""Encodes pieces in worker processes, and gives back what they made in the order of the pieces.

A worker is a process of its own at the end of a pair of sockets, so it needs nothing of the program that asked for it,
not even a guarded `__main__`, and ends with it. With one worker all happens in the asking process.
"""

import contextlib
import functools
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from nanogpt.config.errors import UserError
from nanogpt.data.alphabets import Tokenizer, as_text
from nanogpt.data.manifest import Dtype
from nanogpt.data.pieces import PIECE, Document, Piece, Reading, documents
from nanogpt.data.tokenizers import read_tokenizer

THREADED = {"datasets", "pyarrow", "tokenizers", "torch"}  # have threads of their own, which a fork would lose
AHEAD = 2  # pieces that a worker has at a time, so that it never waits for the next one
WINDOW = 6  # pieces per worker that may wait for an earlier one


class Stopped(UserError):
    """What was done so far is good: the same command goes on from there."""


@dataclass(frozen=True)
class Encoding:
    """How documents become tokens: the folder of the tokenizer, and whether each begins with its end-of-text token."""

    tokenizer: str
    dtype: Dtype
    separate: bool
    reading: Reading


@dataclass(frozen=True)
class Encoded:
    """The tokens of a piece's documents, one after the other, in the files' dtype; the rest is by document.

    `begins` is False for a further stretch of a document that an earlier piece began; `empty` counts what was left out.
    """

    tokens: bytes
    lengths: NDArray[np.int64]
    begins: NDArray[np.bool_]
    keys: NDArray[np.uint64]
    text_bytes: NDArray[np.int64]
    empty: int


def encode(piece: Piece, how: Encoding, tokenizer: Tokenizer) -> Encoded:
    """Read a piece and encode it. Raises UserError for what cannot be read."""
    dtype = np.dtype(how.dtype).newbyteorder("<")
    separator = np.array([tokenizer.eot] if how.separate and tokenizer.eot is not None else [], dtype=dtype)
    tokens: list[bytes] = []
    lengths: list[int] = []
    found: list[tuple[bool, int, int]] = []
    empty = 0
    for batch in _batches(documents(piece, how.reading)):
        full = [each for each in batch if each.text]
        empty += len(batch) - len(full)
        texts = [as_text(each.text) for each in full]
        found += [(each.begins, each.key, len(text.encode())) for each, text in zip(full, texts, strict=True)]
        arrays: list[NDArray[Any]] = [separator[:0]]
        for each, ids in zip(full, _ids(texts, piece, tokenizer), strict=True):
            arrays += [separator[: len(separator) * each.begins], np.asarray(ids)]
            lengths.append(len(ids) + len(separator) * each.begins)
        tokens.append(np.concatenate(arrays, dtype=dtype, casting="unsafe").tobytes())
    begins, keys, text_bytes = zip(*found, strict=True) if found else ((), (), ())
    return Encoded(
        b"".join(tokens),
        np.array(lengths, dtype=np.int64),
        np.array(begins, dtype=np.bool_),
        np.array(keys, dtype=np.uint64),
        np.array(text_bytes, dtype=np.int64),
        empty,
    )


def _ids(texts: list[str], piece: Piece, tokenizer: Tokenizer) -> list[Any]:
    try:
        return list(tokenizer.encode_batch(texts))
    except UserError as error:  # characters that the tokenizer lacks
        paths = [part.path for part in piece.parts]
        where = f"{paths[0]}{f' or one of the next {len(paths) - 1}' if len(paths) > 1 else ''}: " if paths else ""
        raise UserError(f"{where}{error}") from None


def _batches(found: Iterable[Document]) -> Iterator[list[Document]]:
    """A megabyte of documents at a time: ids in the making take many times the memory of the ids that were made."""
    batch: list[Document] = []
    size = 0
    for document in found:
        batch.append(document)
        size += len(document.text)
        if size >= PIECE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass
class _Worker:
    """A process at the other end of `connection`; `wait` waits for its end and gives its exit status."""

    pid: int
    wait: Callable[[], int]
    connection: Connection
    given: int = 0


@contextlib.contextmanager
def encoding_pool(how: Encoding, tokenizer: Tokenizer, workers: int) -> Iterator["Pool"]:
    """Workers that end with the block."""
    pool = Pool(how, tokenizer, workers)
    try:
        yield pool
    finally:
        pool.close()


class Pool:
    """Encodes pieces with `workers` processes; with one, in this process."""

    def __init__(self, how: Encoding, tokenizer: Tokenizer, workers: int) -> None:
        self._how, self._tokenizer = how, tokenizer
        tokenizer.encode("")  # what it makes at its first use is made once, before the workers part
        self._workers = [_start(tokenizer) for _ in range(workers)] if workers > 1 else []
        for worker in self._workers:
            _send(worker, how)

    def map(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Encoded]]:
        """Every piece with what it became, in order. Raises what a piece raised, in its turn."""
        if not self._workers:
            yield from ((piece, encode(piece, self._how, self._tokenizer)) for piece in pieces)
            return
        source = enumerate(pieces)
        waiting: dict[int, Piece] = {}
        done: dict[int, Encoded | UserError] = {}
        turn, last, error = 0, False, None
        while True:
            while not last and (worker := self._idle()) and len(waiting) < WINDOW * len(self._workers):
                try:
                    number, piece = next(source)
                except StopIteration:
                    last = True
                    break
                except UserError as problem:  # of a source that is read here: the pieces before it come first
                    error, last = problem, True
                    break
                waiting[number] = piece
                # What a piece carries is not needed here any more.
                _send(worker, (number, piece))
                waiting[number] = Piece(piece.after, split=piece.split, weight=piece.weight)
                worker.given += 1
            if not waiting:
                if error:
                    raise error
                return
            if turn not in done:
                self._receive(done)
            while turn in done:
                outcome = done.pop(turn)
                if isinstance(outcome, UserError):
                    raise outcome
                yield waiting.pop(turn), outcome
                turn += 1

    def _idle(self) -> "_Worker | None":
        worker = min(self._workers, key=lambda each: each.given)
        return worker if worker.given < AHEAD else None

    def _receive(self, done: dict[int, Encoded | UserError]) -> None:
        """Wait for a result, and take all that have come."""
        by_connection = {worker.connection: worker for worker in self._workers if worker.given}
        for ready in wait(list(by_connection)):
            assert isinstance(ready, Connection)
            worker = by_connection[ready]
            try:
                number, outcome = ready.recv()
            except (EOFError, OSError):
                raise _ended(worker) from None
            worker.given -= 1
            if isinstance(outcome, str):
                raise RuntimeError(f"a tokenizing process failed:\n{outcome}")
            done[number] = outcome

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            worker.wait()


def _start(tokenizer: Tokenizer) -> _Worker:
    """A worker by fork where that is safe, for it saves the half second that a new Python needs; else a new Python."""
    ours, theirs = Pipe()
    if sys.platform == "linux" and threading.active_count() == 1 and not THREADED & set(sys.modules):
        pid = os.fork()
        if pid == 0:
            _be_a_worker(theirs.fileno(), tokenizer)
        theirs.close()
        # A process can be waited for once, and is when it failed and again when all end.
        return _Worker(pid, functools.cache(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), ours)
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-c", f"from nanogpt.data.tokenizing import serve; serve({theirs.fileno()})"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
    theirs.close()
    return _Worker(process.pid, process.wait, ours)


def _be_a_worker(fd: int, tokenizer: Tokenizer) -> NoReturn:
    """The rest of a forked process."""
    try:
        # What the parent has open is not ours to keep: its locks, and its ends of other workers' sockets.
        os.closerange(3, fd)
        os.closerange(fd + 1, 1 + max(map(int, os.listdir("/proc/self/fd"))))
        serve(fd, tokenizer)
    finally:
        os._exit(0)


def _send(worker: _Worker, what: Any) -> None:
    try:
        worker.connection.send(what)
    except OSError:
        raise _ended(worker) from None


def _ended(worker: _Worker) -> Stopped:
    code = worker.wait()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return Stopped(f"prepare: a tokenizing process {how}; out of memory? fewer --workers need less")


def serve(fd: int, tokenizer: Tokenizer | None = None) -> None:
    """Encode what comes until the other side is gone, with the tokenizer in the folder that the first message names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the asking process, which ends this one
    connection = Connection(fd)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        # A thread takes what is sent, so that neither side ever waits for the other to read first.
        while True:
            try:
                inbox.put(connection.recv())
            except (EOFError, OSError):
                inbox.put(None)
                return

    threading.Thread(target=listen, daemon=True).start()
    how = inbox.get()
    if how is None:
        return
    tokenizer = tokenizer or read_tokenizer(Path(how.tokenizer))
    while (task := inbox.get()) is not None:
        number, piece = task
        outcome: Any
        try:
            outcome = encode(piece, how, tokenizer)
        except UserError as error:
            outcome = error
        except BaseException:  # tiktoken's panics, too: to be shown where a person reads it
            outcome = traceback.format_exc()
        try:
            connection.send((number, outcome))
        except OSError:
            return
