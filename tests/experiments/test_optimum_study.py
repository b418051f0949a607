"""From a study with `optimum:` to its report, with the real engine: a table, verdicts, a figure, and the limits.

Slow part, with a second seed: about 15 s.
"""

import re

import pytest

from experiments.__main__ import main

BASE = """# Runs of a few steps.
model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 8, bias: false}
data: {corpus: {kind: zipf_mixture, alphabet_size: 32, train_tokens: 65536, val_tokens: 8192}}
schedule: {kind: constant, warmup_iters: 0}
optimizer: {weight_decay: 0.0}
train: {batch_size: 8, max_iters: 12, precision: fp32, eval_interval: null, eval_tokens: 1024}
parametrization: {mode: mup, base_n_embd: 8}
runtime: {device: cpu, threads: 1, checkpoint: {policy: never}}
"""
STUDY = """question: Does it move?
hypothesis: It stays.
limits: Twelve steps show nothing.
base: base.yaml
sweep:
  grid: {learning_rate: [1e-2, 1e-1, 1, 10], n_embd: [8, 16], mode: [sp, mup]}
  seeds: SEEDS
optimum: {of: learning_rate, per: n_embd, panel: mode, bootstrap: 20}
report: {figures: [lr_transfer]}
"""


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_from_study_to_report(tmp_path, capsys, seeds):
    (tmp_path / "base.yaml").write_text(BASE)
    study = tmp_path / "mini.yaml"
    study.write_text(STUDY.replace("SEEDS", str(list(range(1, seeds + 1)))))
    out = tmp_path / "results"
    assert main(["run", str(study), "--out", str(out), "--launcher", "inprocess", "--jobs", "1", "--no-report"]) == 0
    capsys.readouterr()
    assert main(["fit", str(study), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"^(?:sp|mup) +(?:8|16) +", text, flags=re.M)) == 4, "a row per panel and size"
    assert re.search(r"^(holds|FAILS|undecided): sp: ", text, flags=re.M)
    assert re.search(r"^(holds|FAILS|undecided): mup: ", text, flags=re.M)
    assert ("one seed gives no interval" in text) == (seeds == 1)
    assert text.rstrip().endswith("limits: Twelve steps show nothing.")
    assert main(["report", str(study), "--out", str(out)]) == 0
    html, markdown = ((out / "mini" / f"report.{kind}").read_text() for kind in ("html", "md"))
    for page in (html, markdown):
        for part in ("What this study can not show", "Twelve steps show nothing.", "Where the loss is lowest",
                     "best learning", "drift (octaves)", "regret", "Akima"):  # fmt: skip
            assert part.replace("_", "\\_") in page or part in page, part
    assert "could not be drawn" not in html
    if seeds == 1:
        assert html.count("<b>Undecided</b>") == markdown.count("**Undecided.**") == 2
    assert (out / "mini" / "figures" / "lr_transfer.png").stat().st_size > 10_000


@pytest.mark.usefixtures("fake_engine")
def test_nothing_to_fit_is_said(tmp_path, capsys):
    (tmp_path / "base.yaml").write_text(BASE)
    study = tmp_path / "mini.yaml"
    study.write_text("question: q\nhypothesis: h\nbase: base.yaml\n")
    out = tmp_path / "results"
    main(["run", str(study), "--out", str(out), "--launcher", "inprocess", "--no-report"])
    assert main(["fit", str(study), "--out", str(out)]) == 2
    missing = "no `fit:`, no `optimum:`, no `approaches:`, no `compare:` and no `claims:`"
    assert f"has {missing}, so there is nothing to fit" in capsys.readouterr().err
