"""Our scorer and lm-evaluation-harness's, on one file: equal figures, through the adapter. Slow: 10 s in all."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.data.alphabets import Bytes
from nanogpt.evaluation.hellaswag import TEXTS
from nanogpt.evaluation.hellaswag_file import read_items
from nanogpt.evaluation.multiple_choice import answer_all, make_questions
from nanogpt.evaluation.scoring import Scorer
from nanogpt.model import build_model
from nanogpt.train import autocast_for
from tests.evaluation.circle import config

ITEMS = Path(__file__).with_name("items.jsonl")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """A model of bytes with large random weights and a context that some items do not fit."""
    model = build_model(config(96, vocab_size=256, n_embd=32, n_head=2, n_layer=2, position="rope")).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return Scorer(model, autocast_for("fp32", torch.device("cpu")))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """lm-eval's own task `hellaswag`, its code included, on our file; and a text for rolling log-likelihoods."""
    lm_eval = pytest.importorskip("lm_eval")
    pytest.importorskip("datasets")
    own = Path(lm_eval.__file__).parent / "tasks" / "hellaswag" / "hellaswag.yaml"
    items = [json.loads(line) for line in ITEMS.read_text(encoding="utf-8").splitlines()]
    with (tmp_path / "items.jsonl").open("w") as file:
        for item in items:
            item.pop("by_hand")
            file.write(json.dumps(item | {"label": str(item["label"])}) + "\n")
    data = f"{{train: {tmp_path}/items.jsonl, validation: {tmp_path}/items.jsonl}}"
    (tmp_path / "items.yaml").write_text(
        f"include: {own}\ntask: items\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\n"
    )
    (tmp_path / "text.jsonl").write_text(json.dumps({"page": "A man is in a kitchen, and it is hot. " * 8}) + "\n")
    (tmp_path / "text.yaml").write_text(
        "task: text\noutput_type: loglikelihood_rolling\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/text.jsonl}}}}\n"
        "doc_to_text: ''\ndoc_to_target: '{{page}}'\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    return tmp_path


def run(model: Any, folder: Path, task: str) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    return dict(found)


def test_lm_evals_own_scorer_finds_what_ours_finds(
    scorer: Scorer, tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from nanogpt.evaluation.lmeval import NanoGPT

    questions = make_questions(read_items(ITEMS), Bytes().encode, tuple(TEXTS), scorer.block_size)
    ours = answer_all(scorer, questions)
    theirs = run(NanoGPT(scorer, Bytes(), batch_size=7), tasks, "items")
    figures, expected = theirs["results"]["items"], ours.tally.figures()
    assert figures["acc,none"] == expected["acc"]
    assert figures["acc_norm,none"] == expected["acc_norm"]
    assert expected["acc"] != expected["acc_norm"]
    for sample in theirs["samples"]["items"]:
        found = [response[0][0] for response in sample["resps"]]
        assert found == pytest.approx(ours.verdicts[sample["doc_id"]]["lm-eval"].log_probs, rel=1e-5)


def test_rolling_log_likelihoods_are_those_of_every_byte(
    scorer: Scorer, tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Written out: windows of the whole context, the last one filled with what comes before."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from nanogpt.evaluation.lmeval import NanoGPT

    found = run(NanoGPT(scorer, Bytes()), tasks, "text")["results"]["text"]["bits_per_byte,none"]
    text = json.loads((tasks / "text.jsonl").read_text())["page"]
    ids = [255, *Bytes().encode(text)]
    nats, done = 0.0, 0
    while done < len(ids) - 1:
        end = min(done + 96, len(ids) - 1)
        window = torch.tensor(ids[max(0, end - 96) : end + 1])
        losses = torch.nn.functional.cross_entropy(scorer.model(window[None, :-1])[0], window[1:], reduction="none")
        nats += float(losses[-(end - done) :].detach().sum())
        done = end
    assert found == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
