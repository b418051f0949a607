"""Feed-forward layers in a config: defaults, and one line that says why for each routing that cannot be had."""

from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import Config, UserError
from nanogpt.configfile import load_config


def model(ffn: Any, **keys: Any) -> Any:
    return Config.model_validate({"model": {"ffn": ffn} | keys, "train": {"max_iters": 1}}).model


def test_defaults_are_balanced_by_bias_and_drop_nothing() -> None:
    ffn = model("topk_moe").ffn
    assert (ffn.experts, ffn.top_k, ffn.gate, ffn.balance) == (8, 2, "renorm", "bias")
    assert (ffn.aux_scope, ffn.capacity_factor, ffn.z_coefficient) == ("sequence", None, 0.0)


@pytest.mark.parametrize(
    ("expert", "hidden"), [("gelu", 3072), ("gelu_exact", 3072), ("relu2", 3072), ("swiglu", 2048)]
)
@pytest.mark.parametrize("kind", ["soft_moe", "topk_moe"])
def test_an_expert_is_as_wide_as_a_dense_layer_of_its_kind(kind: str, expert: str, hidden: int) -> None:
    assert model({"kind": kind, "expert": expert}).ffn_hidden == model(expert).ffn_hidden == hidden
    assert model({"kind": kind, "expert": expert, "hidden": 100}).ffn_hidden == 100


REFUSED = [
    (
        {"kind": "topk_moe", "top_k": 1},
        {},
        "top_k=1 with gate=renorm: a softmax over the one chosen expert is always 1",
    ),
    ({"kind": "topk_moe", "top_k": 9}, {}, "top_k=9 is more than experts=8"),
    ({"kind": "topk_moe", "moe_every": 2}, {"n_layer": 1}, "ffn.moe_every=2 counts .* there is only one"),
    ({"kind": "soft_moe", "moe_every": 5}, {"n_layer": 4}, "there are 4: no layer would have experts"),
    ("expert_choice", {}, "arXiv 2202.09368.*a position would see later tokens"),
    ("smear", {}, "arXiv 2306.03745.*a position would see later tokens"),
    ({"kind": "soft_moe", "slots": 4}, {}, "arXiv 2308.00951.*a position would see later tokens"),
    ({"kind": "Soft-MoE-Slots"}, {}, "arXiv 2308.00951"),
    ({"kind": "topk_moe", "gate": "expert_choice"}, {}, "arXiv 2202.09368"),
]


@pytest.mark.parametrize(("ffn", "keys", "reason"), REFUSED)
def test_what_cannot_be_had_is_refused_with_its_reason(ffn: Any, keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model(ffn, **keys)


SLOTS = ["slots", "soft_moe_slot", "softmoe_slots", "Soft-MoE-Slots", "slots_per_expert"]
SMEAR = ["smear", "SMEAR", "smear_sequence", "sequence_smear", "soft_merging", "soft-merge"]
CHOICE = ["expert_choice", "ExpertChoice", "expert-choice", "Expert Choice", "expert_choice_topk", "ec", "topk_ec"]


@pytest.mark.parametrize("name", [*SLOTS, *SMEAR, *CHOICE])
def test_a_file_that_asks_for_the_future_gets_one_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "leaky.yaml"
    file.write_text(f"train: {{max_iters: 1}}\nmodel:\n  ffn: {name}\n")
    with pytest.raises(UserError, match=f"leaky.yaml:3: model.ffn: '{name}' is refused: .*causal") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


WORDS = [
    ("--ffn={kind: soft_moe, num_slots_per_expert: 2}", "2308.00951"),
    ("--ffn={kind: topk_moe, mode: Expert Choice}", "2202.09368"),
    ("--ffn={kind: topk_moe, choice: expert}", "2202.09368"),
    ("--ffn={kind: topk_moe, router: {kind: expert_choice}}", "2202.09368"),
    ("--ffn={kind: [soft_moe, slots]}", "2308.00951"),
    ("--ffn={kind: soft_moe, merge: sequence}", "2306.03745"),
    ("--ffn={kind: topk_moe, router: sequence}", "2306.03745"),
    ("--trunk=smear", "2306.03745"),
    ("--trunk={kind: shared, routing: expert-choice}", "2202.09368"),
    ("--ffn.slots=4", "2308.00951"),
    ("--ffn.router=expert_choice", "2202.09368"),
    ("--ffn.router.kind=expert_choice", "2202.09368"),
    ("--moe=expert_choice", "2202.09368"),
    ("--moe={routing: ec}", "2202.09368"),
    ("--model={slots: 4}", "2308.00951"),
    ("--merge=sequence", "2306.03745"),
]


@pytest.mark.parametrize(("setting", "paper"), WORDS)
def test_a_setting_that_asks_for_the_future_is_refused_wherever_it_stands(setting: str, paper: str) -> None:
    with pytest.raises(UserError, match=f"command line: .*is refused: .*arXiv {paper}.*later tokens"):
        load_config("configs/tiny_cpu.yaml", [setting])


@pytest.mark.parametrize("setting", ["--runtime.slots=2", "--out_dri=/tmp/slots", "--ffn.aux_skope=sequence"])
def test_another_slip_is_not_taken_for_a_routing(setting: str) -> None:
    with pytest.raises(UserError, match="no such key"):
        load_config("configs/tiny_cpu.yaml", [setting])


IDLE = [
    ("bias", {"aux_coefficient": 0.1}, "aux_coefficient=0.1 has no effect with balance=bias.*belongs to balance=aux"),
    ("bias", {"aux_scope": "micro_batch"}, "aux_scope=micro_batch has no effect with balance=bias"),
    ("none", {"aux_scope": "micro_batch"}, "aux_scope=micro_batch has no effect with balance=none"),
    ("aux", {"bias_rate": 0.1}, "bias_rate=0.1 has no effect with balance=aux.*belongs to balance=bias"),
]


@pytest.mark.parametrize(("balance", "keys", "message"), IDLE)
def test_a_setting_of_another_way_to_balance_is_refused(balance: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model({"kind": "topk_moe", "balance": balance, **keys})
    written_out = model({"kind": "topk_moe", "balance": balance}).ffn.model_dump()
    assert model(written_out).ffn.balance == balance  # defaults, though written, ask for nothing
