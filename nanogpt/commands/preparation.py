"""`prepare`: a corpus's files."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nanogpt.commands.parser import EXIT_FAILED, EXIT_STOPPED, AddCommand
from nanogpt.config.errors import number, whole_number


def add(command: AddCommand) -> None:
    """Add the command."""
    prepare = command("prepare", _prepare, "make a corpus's files")
    prepare.add_argument(
        "name", help="zipf_mixture, shakespeare_char, shakespeare, wikitext-2, wikitext-103, openwebtext, fineweb-edu, "
        "hf:OWNER/NAME, or a name of your own with --from",
    )  # fmt: skip
    add = prepare.add_argument
    add(
        "--from",
        dest="source",
        metavar="PATH",
        help="a local file or folder of text, jsonl or parquet, or hf:OWNER/NAME",
    )
    add(
        "--tokenizer",
        help="gpt2 (the default), cl100k, o200k, byte, char, bpe4096 (trained here), or a tokenizer's file",
    )
    add("--ranks", type=Path, metavar="FILE", help="the ranks of a named tokenizer, instead of tiktoken's cache")
    add("--format", dest="layout", choices=("nanogpt", "npy", "llmc"), help="whose layout the files of tokens have")
    add("--shard-tokens", type=whole_number(1), metavar="N", help="tokens in a shard")
    add("--workers", type=whole_number(1), metavar="N", help="processes that tokenize (all cores)")
    add("--val-share", type=number, metavar="SHARE", help="share of the documents that validate, where a hash decides")
    add("--subset", metavar="NAME", help="a dataset's configuration, e.g. sample-100BT")
    add("--column", metavar="NAME", help="where jsonl and tables have the text (text)")
    add("--glob", metavar="PATTERN", help="the files to take from a folder, e.g. '*.py'")
    add("--encoding-errors", choices=("strict", "replace"), default="strict", help="bytes that are no UTF-8")
    add("--data_dir", "--data-dir", help="where corpora lie")
    what = prepare.add_mutually_exclusive_group()
    what.add_argument("--verify", action="store_true", help="read every byte and compare it with the manifest")
    what.add_argument("--clean", action="store_true", help="remove the files that prepare made, and only those")


def _cores() -> int:
    """Those this process may use; macOS does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.config.runtime import Runtime
    from nanogpt.data.opening import data_root
    from nanogpt.data.plan import Request
    from nanogpt.data.prepare import clean_corpus, prepare_corpus, verify_corpus

    request = Request(
        arguments.name,
        data_root(Runtime(data_dir=arguments.data_dir)),
        arguments.source,
        tokenizer=arguments.tokenizer,
        ranks=arguments.ranks,
        layout=arguments.layout,
        shard_tokens=arguments.shard_tokens,
        workers=arguments.workers or _cores(),
        val_share=arguments.val_share,
        subset=arguments.subset,
        column=arguments.column,
        glob=arguments.glob,
        errors=arguments.encoding_errors,
    )
    if arguments.verify:
        text, is_whole = verify_corpus(request)
        print(text, file=sys.stdout if is_whole else sys.stderr)
        return 0 if is_whole else EXIT_FAILED
    try:
        print(clean_corpus(request) if arguments.clean else prepare_corpus(request))
    except KeyboardInterrupt:
        print("nanogpt: prepare: stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_STOPPED
    return 0
