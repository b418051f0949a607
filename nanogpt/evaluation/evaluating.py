"""`eval MODEL TASK_OR_CORPUS ...`: loads the model once, scores it on each, prints and keeps the results."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.config import UserError, run_id
from nanogpt.data.binfiles import file_sha256
from nanogpt.data.opening import data_root
from nanogpt.data.vocabulary import Vocabulary
from nanogpt.evaluation.corpora import find_corpus, parts_of
from nanogpt.evaluation.corpus_loss import CorpusLoss, score_corpus
from nanogpt.evaluation.hellaswag import TEXTS
from nanogpt.evaluation.hellaswag_file import items_file, read_items
from nanogpt.evaluation.multiple_choice import Tally, answer_all, cut_endings, make_questions
from nanogpt.evaluation.results import check_writable, default_file, write_items, write_results
from nanogpt.evaluation.running import Running
from nanogpt.evaluation.scoring import Scorer
from nanogpt.evaluation.tokenizing import text_tokenizer
from nanogpt.hardware import resolve_precision
from nanogpt.team import Team
from nanogpt.train import autocast_for
from nanogpt.trained import Trained, load_trained

HELLASWAG = "hellaswag"


@dataclass(frozen=True)
class Asked:
    """What a person asked `eval` for; names are those of the flags."""

    place: str
    names: tuple[str, ...]
    device: str | None = None
    precision: str | None = None
    data: Path | None = None
    text: str = "both"
    split: str = "val"
    stride: int | None = None
    limit: int | None = None
    batch_size: int | None = None
    out: Path | None = None
    items: Path | None = None
    ranks: Path | None = None

    def __post_init__(self) -> None:
        if self.out is not None and len(self.names) > 1:
            raise UserError(f"eval: --out takes the results of one task, {len(self.names)} are asked for")
        if HELLASWAG not in self.names:
            for flag, value in (("--data", self.data), ("--items", self.items)):
                if value is not None:
                    raise UserError(f"eval: {flag} is for hellaswag, which is not asked for")
        if self.stride is not None and set(self.names) == {HELLASWAG}:
            raise UserError("eval: --stride is for a corpus; hellaswag's endings are scored whole")

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(TEXTS) if self.text == "both" else (self.text,)


@dataclass(frozen=True)
class Subject:
    """A loaded model with its vocabulary, as all tasks share it."""

    trained: Trained
    vocabulary: Vocabulary
    scorer: Scorer
    precision: str

    def shared_by(self, team: Team) -> "Subject":
        """The same, its work shared by a team."""
        return dataclasses.replace(self, scorer=dataclasses.replace(self.scorer, team=team))


def load_subject(asked: Asked) -> Subject:
    """The model, in the precision asked for, else its own where the device has it. Raises UserError where it cannot."""
    trained = load_trained(asked.place, asked.device)
    where = next(trained.model.parameters()).device
    if asked.precision is not None:
        precision = resolve_precision(asked.precision, str(where))
    else:
        precision = _own_precision(trained, str(where))
    scorer = Scorer(trained.model, autocast_for(precision, where))
    return Subject(trained, trained.vocabulary(asked.ranks), scorer, precision)


def _own_precision(trained: Trained, device: str) -> str:
    try:
        return resolve_precision(str(trained.config.train.precision), device)
    except UserError:
        return "fp32"  # trained where fp16 or bf16 is fast; every device has this


def evaluate_all(asked: Asked, subject: Subject) -> None:
    """Score everything that was asked for, one after another; only the leader of a team prints and writes."""
    leads = subject.scorer.team.leads
    names = [part for name in asked.names for part in parts_of(name, subject.trained)]
    if asked.out is not None and len(names) > 1:
        raise UserError(f"eval: --out takes the results of one task; {asked.names[0]} is {', '.join(names)}")
    files = {name: asked.out or default_file(asked.place, _file_name(name, asked), asked.limit) for name in names}
    for file in [*files.values(), asked.items]:
        if leads and file is not None:
            check_writable(file)
    for name in names:
        started = time.perf_counter()
        results, lines = TASKS.get(name, _corpus)(name, asked, subject)
        if not leads:
            continue
        results |= {**about(asked, subject), "seconds": round(time.perf_counter() - started, 3)}
        file = files[name]
        if file is not None:
            write_results(file, {"task": name, **results})
        for line in [*lines, f"results: {file}" if file is not None else "(--out FILE keeps the results)"]:
            print(line, flush=True)


def _file_name(name: str, asked: Asked) -> str:
    if name in TASKS:
        return name
    return Path(name).name.replace(":", ".") + (
        "" if asked.split == "val" or Path(name).is_file() else f".{asked.split}"
    )


def about(asked: Asked, subject: Subject) -> dict[str, Any]:
    """Of which model, read how, on what: the same for every task."""
    trained, tokenizer, scorer = subject.trained, subject.vocabulary.tokenizer, subject.scorer
    known = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint} if tokenizer is not None else None
    return {
        "model": _model(trained, asked.place),
        "tokenizer": known,
        "limit": asked.limit,
        "batch_size": asked.batch_size,
        "device": str(scorer.device),
        "precision": subject.precision,
        "nproc": scorer.team.size,
    }


def _model(trained: Trained, place: str) -> dict[str, Any]:
    """A run's id and step, or the sha256 of weights that are no run's."""
    if trained.weights is not None:
        return {"place": place, "sha256": trained.weights.sha256()}
    return {"place": place, "id": run_id(trained.config), "step": trained.step}


def _hellaswag(name: str, asked: Asked, subject: Subject) -> tuple[dict[str, Any], list[str]]:
    scorer, tokenizer = subject.scorer, text_tokenizer(subject.vocabulary, HELLASWAG)
    file = scorer.team.in_turn(lambda: items_file(asked.data, data_root(subject.trained.config.runtime)))
    items = read_items(file, asked.limit)
    questions = make_questions(items, tokenizer.encode, asked.texts, scorer.block_size)
    answers = answer_all(scorer, questions, asked.batch_size, Running(scorer.team.leads))
    cut = cut_endings(questions, scorer.block_size)
    if asked.items is not None and scorer.team.leads:
        write_items(asked.items, questions, answers)
    tally = answers.tally
    results = {
        **tally.figures(),
        "items": tally.items,
        "by_text": tally.by_text(),
        "cut_endings": cut,
        "data": {"file": str(file), "sha256": file_sha256(file)},
    }
    return results, list(_hellaswag_lines(tally, str(file), cut, scorer.block_size))


MEANING = {
    "acc": "likeliest ending (lm-evaluation-harness's acc)",
    "acc_norm": "likeliest per character (lm-evaluation-harness's acc_norm)",
    "acc_norm_tokens": "likeliest per token (build-nanogpt's acc_norm, on its text)",
}


def _hellaswag_lines(tally: Tally, file: str, cut: int, block_size: int) -> Iterator[str]:
    yield f"hellaswag: {tally.items:,} items of {file}"
    figures = tally.figures()
    for measure, meaning in MEANING.items():
        if measure in figures:
            yield f"{measure:<15}  {_with_error(figures[measure], figures[f'{measure}_stderr'])}  {meaning}"
    if cut:
        yield f"{cut:,} endings do not fit the model's context of {block_size:,} tokens with all that precedes them"


def _with_error(value: float | None, error: float | None) -> str:
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _corpus(name: str, asked: Asked, subject: Subject) -> tuple[dict[str, Any], list[str]]:
    scorer = subject.scorer
    corpus = find_corpus(name, asked.split, subject.trained, subject.vocabulary, asked.ranks)
    running = Running(scorer.team.leads)
    found = score_corpus(scorer, corpus.stretch, asked.stride, asked.limit, asked.batch_size, running)
    results = {
        **dataclasses.asdict(found),
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "data": corpus.source,
    }
    return results, list(_corpus_lines(corpus.name, found, corpus.source["split"]))


def _corpus_lines(name: str, found: CorpusLoss, split: str | None) -> Iterator[str]:
    of = f" of {found.of_windows:,}" if found.windows < found.of_windows else ""
    yield f"{name}{f', split {split}' if split else ''}: {found.tokens:,} tokens in {found.windows:,}{of} windows"
    yield (
        f"context        up to {found.block_size:,} tokens, on average {found.mean_context:,.1f} "
        f"(stride {found.stride:,})"
    )
    yield f"loss           {_with_error(found.loss, found.stderr)} nats per token"
    yield f"perplexity     {found.perplexity:,.4g} per token"
    if found.bits_per_byte is not None:
        yield f"bits per byte  {found.bits_per_byte:.4f} ({found.bytes:,} bytes)"


# The tasks by name; every other name is a corpus.
TASKS: dict[str, Callable[[str, Asked, Subject], tuple[dict[str, Any], list[str]]]] = {HELLASWAG: _hellaswag}
