"""`eval`: how good a trained model is."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt.commands.parser import EXIT_FAILED, EXIT_STOPPED, EXIT_USER, AddCommand
from nanogpt.config import UserError
from nanogpt.config.errors import whole_number

if TYPE_CHECKING:
    from nanogpt.evaluation.evaluating import Asked, Subject

TEXTS = ("both", "lm-eval", "build-nanogpt")


def add(command: AddCommand) -> None:
    """Add the command."""
    parser = command("eval", _eval, "how good a trained model is: HellaSwag, the loss on any corpus, lm-eval's tasks")
    add = parser.add_argument
    add("place", metavar="RUN_OR_CHECKPOINT_OR_HF", help="a run's folder, one checkpoint, or hf:NAME")
    what = "hellaswag; a prepared corpus, its folder, or a file of text; own: the run's corpus"
    add("names", nargs="*", metavar="TASK_OR_CORPUS", help=what)
    add("--depths", metavar="N,N,...", help="the run's validation loss at loops such as 1,2,4,8; 3x2x2 under random2d")
    add("--data", type=Path, metavar="FILE", help="hellaswag: lines of JSON; default: the validation split, downloaded")
    add("--text", choices=TEXTS, default="both", help="hellaswag: whose wording is scored; default %(default)s")
    add("--items", type=Path, metavar="FILE", help="hellaswag: write what is chosen of each item, as lines of JSON")
    add("--split", choices=("val", "train", "test"), default="val", help="of a corpus; default %(default)s")
    add(
        "--stride", type=whole_number(1), metavar="N", help="targets per window of a corpus; default: the whole context"
    )
    add("--limit", type=whole_number(1), metavar="N", help="the first N items, or N windows, evenly spread")
    add("--batch-size", "--batch_size", type=whole_number(1), metavar="N", help="sequences at once; default: by memory")
    add("--nproc", type=whole_number(1), default=1, metavar="N", help="processes that share the work; default 1")
    add("--device", help="default: the run's")
    add("--precision", choices=("fp32", "bf16", "fp16", "auto"), help="default: the run's, where the device has it")
    add("--ranks", type=Path, metavar="FILE", help="GPT-2's ranks, vocab.bpe or .tiktoken, where nothing has them")
    add("--out", type=Path, metavar="FILE", help="where the results go; default: RUN/evaluations/TASK.json")
    add("--lm-eval", "--lm_eval", metavar="TASK,...", help="tasks of lm-evaluation-harness (the extra 'lm-eval')")
    add("--include-path", "--include_path", type=Path, metavar="FOLDER", help="lm-eval: a folder of your own tasks")


def _eval(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from nanogpt.hardware import calm_threads, keep_freed_memory

    calm_threads()
    keep_freed_memory()
    try:
        return _as_asked(arguments)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # after the figure so far
        return EXIT_STOPPED


def _as_asked(arguments: argparse.Namespace) -> int:
    if arguments.lm_eval is None and not arguments.names:
        return _depths(arguments)
    _check(arguments)
    asked = _asked(arguments)
    from nanogpt.evaluation.sharing import refuse_torchrun
    from nanogpt.team import is_rank

    refuse_torchrun()
    if is_rank():
        return _as_rank(asked, arguments)
    return _lead(arguments) if arguments.nproc > 1 else _work(asked, arguments)


def _depths(arguments: argparse.Namespace) -> int:
    """The old form: the loss on the run's own validation windows, by depth."""
    flags = ("data", "items", "stride", "limit", "batch_size", "out", "precision", "ranks", "include_path")
    given = [name for name in flags if getattr(arguments, name) is not None]
    given += ["nproc"] * (arguments.nproc > 1) + ["split"] * (arguments.split != "val")
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise UserError(f"eval: {flag} needs a task or a corpus, such as hellaswag, or own for the run's own corpus")
    from nanogpt.depths import losses_by_depth, table_lines

    depths = [depth.strip() for depth in arguments.depths.split(",")] if arguments.depths is not None else []
    if "" in depths:
        raise UserError(f"eval: --depths: an empty depth in {arguments.depths!r}; write them as in 1,2,4")
    for line in table_lines(losses_by_depth(Path(arguments.place), depths, arguments.device)):
        print(line, flush=True)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.depths is not None:
        raise UserError("eval: --depths is of the run's own validation loss; leave the task out, or the depths")
    if arguments.include_path is not None and arguments.lm_eval is None:
        raise UserError("eval: --include-path is for --lm-eval, which is not asked for")
    if arguments.lm_eval is not None and arguments.names:
        raise UserError(f"eval: --lm-eval takes its own tasks; ask for {', '.join(arguments.names)} apart")


def _asked(arguments: argparse.Namespace) -> "Asked":
    from nanogpt.evaluation.evaluating import Asked

    names = tuple(dict.fromkeys(arguments.names))
    same = ("device", "precision", "data", "text", "split", "stride", "limit", "batch_size", "out", "items", "ranks")
    return Asked(arguments.place, names, **{name: getattr(arguments, name) for name in same})


def _work(asked: "Asked", arguments: argparse.Namespace) -> int:
    """What one process does: alone, or as one of several that share it."""
    import torch

    from nanogpt.evaluation.evaluating import load_subject
    from nanogpt.evaluation.sharing import check_own_device, leave_with_captain, take_own_gpu
    from nanogpt.team import is_rank, joined

    try:
        if is_rank():
            leave_with_captain()
            take_own_gpu()
        subject = load_subject(asked)
        if is_rank():
            check_own_device(subject.scorer.device, asked.device or subject.trained.config.runtime.device)
        with joined(subject.scorer.device) as team:
            _evaluate(asked, subject.shared_by(team), arguments)
    except torch.OutOfMemoryError as error:
        raise UserError(f"eval: {str(error).splitlines()[0]} A smaller --batch-size needs less memory") from None
    return 0


def _evaluate(asked: "Asked", subject: "Subject", arguments: argparse.Namespace) -> None:
    from nanogpt.evaluation.evaluating import evaluate_all

    leads = subject.scorer.team.leads
    for note in subject.trained.damaged if leads else ():
        print(f"nanogpt: passed over: {note}", file=sys.stderr)
    if arguments.lm_eval is not None:
        from nanogpt.evaluation.lmeval_tasks import evaluate_tasks

        evaluate_tasks(asked, subject, arguments.lm_eval, arguments.include_path)
    else:
        evaluate_all(asked, subject)


def _as_rank(asked: "Asked", arguments: argparse.Namespace) -> int:
    """One of the processes that `_lead` started. A user's mistake it leaves to that one, which says it once."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from nanogpt.team import PeersLostError, leave_to_captain

    try:
        return _work(asked, arguments)
    except UserError as problem:
        get_error_handler().record_exception(problem)
        return EXIT_USER
    except RuntimeError as problem:
        try:
            leave_to_captain(problem)
        except PeersLostError:
            return EXIT_FAILED  # the rank that is gone knows why
        raise


def _lead(arguments: argparse.Namespace) -> int:
    """Start the processes, and end as one would."""
    from nanogpt.captain import explain, start_ranks
    from nanogpt.evaluation.sharing import words_of

    failures = start_ranks(words_of(arguments), arguments.nproc)
    if failures is None:
        return 0
    if not failures:
        return EXIT_STOPPED
    print(f"nanogpt: {explain(failures)}", file=sys.stderr)
    return EXIT_USER if any(failure.exitcode == EXIT_USER for failure in failures.values()) else EXIT_FAILED
