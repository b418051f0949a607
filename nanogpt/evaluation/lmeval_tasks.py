"""`eval MODEL --lm-eval TASK,...`: runs tasks of lm-evaluation-harness on a model, and keeps what it reports."""

import importlib.util
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanogpt.config import UserError
from nanogpt.config.errors import did_you_mean
from nanogpt.data.alphabets import Tokenizer
from nanogpt.downloads import OFFLINE
from nanogpt.evaluation.evaluating import Asked, Subject, about
from nanogpt.evaluation.results import check_writable, default_file, write_results
from nanogpt.evaluation.tokenizing import text_tokenizer
from nanogpt.weights import hub


def evaluate_tasks(asked: Asked, subject: Subject, tasks: str, folder: Path | None) -> None:
    """Run the tasks; a team's leader prints their figures and writes them.

    Raises UserError without the package, for a task that is not there, and for one whose data cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("eval: --lm-eval needs lm-evaluation-harness: pip install 'nanogpt-scaling[lm-eval]'")
    tokenizer = text_tokenizer(subject.vocabulary, "--lm-eval")
    names = [name.strip() for name in tasks.split(",")]
    leads = subject.scorer.team.leads
    label = f"lm-eval.{'+'.join(names)}"
    file = asked.out or default_file(asked.place, label, asked.limit)
    if leads and file is not None:
        check_writable(file)
    started = time.perf_counter()
    found = _run(names, folder, subject, tokenizer, asked)
    if not leads:
        return
    results = {
        "task": label,
        "results": found["results"],
        "versions": found["versions"],
        "n-samples": found["n-samples"],
    }
    results |= {**about(asked, subject), "seconds": round(time.perf_counter() - started, 3)}
    if file is not None:
        write_results(file, _plain(results))
    for line in _lines(found["results"]):
        print(line)
    print(f"results: {file}" if file is not None else "(--out FILE keeps the results)", flush=True)


def _run(names: list[str], folder: Path | None, subject: Subject, tokenizer: Tokenizer, asked: Asked) -> dict[str, Any]:
    if not hub.forbidden() and not hub.reachable():
        os.environ[OFFLINE] = "1"  # before it is imported, which asks the network for half a minute else
    import lm_eval
    from lm_eval.tasks import TaskManager

    from nanogpt.evaluation.lmeval import NanoGPT

    if folder is not None and not folder.is_dir():
        raise UserError(f"eval: --include-path {folder}: no such folder")
    path = str(folder) if folder is not None else None
    manager = TaskManager(include_path=path, include_defaults=False) if path else TaskManager()
    if path and not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=path)  # the tasks that lm-eval brings are read only where they are needed
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"eval: --lm-eval: no such task {name!r}{_nearest(name, manager.all_tasks)}")
    model = NanoGPT(subject.scorer, tokenizer, asked.batch_size)
    if not subject.scorer.team.leads:
        logging.disable(logging.WARNING)
    try:
        found = lm_eval.simple_evaluate(
            model=model, tasks=names, task_manager=manager, limit=asked.limit, log_samples=False
        )
    except (OSError, ConnectionError) as error:
        raise UserError(f"eval: --lm-eval {','.join(names)}: its data cannot be had: {_first_line(error)}") from None
    return dict(found or {})  # lm-eval tells the results to the first process of each machine alone


def _nearest(name: str, tasks: list[str]) -> str:
    hint = did_you_mean(name, tasks)
    return hint if "did you mean" in hint else "; `lm_eval ls tasks` lists them, --include-path adds your own"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line per figure, with its standard error: `hellaswag  acc  0.2892 ± 0.0045`."""
    for task, figures in results.items():
        for key, value in figures.items():
            measure, _, kind = key.partition(",")
            if not isinstance(value, int | float) or measure.endswith("_stderr") or not kind:
                continue
            error = figures.get(f"{measure}_stderr,{kind}")
            shown = f"{value:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) else "")
            yield f"{task}  {measure}  {shown}" + (f"  ({kind})" if kind != "none" else "")


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers of numpy's as numbers, others that it lacks as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    number = float(value) if hasattr(value, "__float__") else None
    return str(value) if number is None or number != number or abs(number) == float("inf") else number
