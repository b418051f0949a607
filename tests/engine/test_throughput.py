"""The engine measures how fast a config trains: real steps, answers line by line, errors as answers."""

import io
import json

from nanogpt.config import Config
from nanogpt.configfile import load_config
from nanogpt.throughput import measure, serve


def tiny() -> Config:
    sizes = ["n_layer=1", "n_head=1", "n_embd=8", "block_size=8", "batch_size=2", "eval_tokens=64"]
    corpus = ["data.corpus.train_tokens=65536", "data.corpus.val_tokens=65536"]
    return load_config("configs/zipf_small.yaml", [*sizes, *corpus, "base_head_size=8"])


def test_a_measurement_has_every_cost() -> None:
    found = measure(tiny(), seconds=0.05, threads=1)
    assert found.tokens_per_second > 0
    assert min(found.evaluation_seconds, found.setup_seconds, found.checkpoint_seconds) > 0


def test_answers_come_line_by_line_and_a_failure_is_one() -> None:
    good = tiny().model_dump(mode="json")
    bad = {**good, "model": {**good["model"], "vocab_size": 3}}
    requests = "".join(json.dumps({"config": config, "seconds": 0.01}) + "\n" for config in (bad, good))
    answers = io.StringIO()
    serve(io.StringIO(requests), answers)
    ready, failed, measured = map(json.loads, answers.getvalue().splitlines())
    assert ready == {"ready": True}
    assert failed == {"error": "model.vocab_size: 3 is less than the corpus's 256; use auto"}
    assert measured["tokens_per_second"] > 0
