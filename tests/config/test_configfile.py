"""Config files: how YAML is read, how layers combine, and what a mistake is answered with."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import UserError, run_id
from nanogpt.config.trunks import COUNT_THEIR_OWN, LogNormalLoops, Recurrent
from nanogpt.configfile import dump_yaml, load_config, load_yaml, parse_override, resolve_key

BASE = """\
model:
  n_layer: 2
  n_head: 2
  n_embd: 32
  ffn: swiglu
data: {corpus: zipf_mixture}
runtime: {checkpoint: {policy: last, interval_seconds: 5}}
optimizer:
  learning_rate: 3e-4
train:
  max_iters: 100
  batch_size: 1e1
"""


def write_as(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("1:30", "1:30"),
        ("2026-11-01", "2026-11-01"),
        ("010", 10),
        ("1_000", 1000),
        ("-.5", -0.5),
        ("~", None),
        ("", None),
        ("[1, 2e0]", [1, 2.0]),
        ("0x10", "0x10"),
    ],
)
def test_scalars_mean_what_people_mean(text: str, value: Any) -> None:
    found = parse_override(f"--key={text}")[1]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value", ["no", "3e-4", "1:30", "", "null", "true", 3e-4, 1e300, 7, True, None, ["a", 1.5], "ü"]
)
def test_yaml_round_trip(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path, dump_yaml({"key": value, "nested": {"other": value}}))
    assert load_yaml(path).data == {"key": value, "nested": {"other": value}}


def test_numbers_fit_their_fields(base: Path) -> None:
    config = load_config(base)
    assert config.train.batch_size == 10
    assert isinstance(config.train.batch_size, int)
    assert config.optimizer.learning_rate == 3e-4


def test_layers_lie_over_each_other(tmp_path: Path, base: Path) -> None:
    write(tmp_path, "base: base.yaml\nmodel: {ffn: {hidden: 64}}\nn_layer: 5\n", "middle.yaml")
    top = write(tmp_path, "base: middle.yaml\ntrain: {tokens: 1e6}\n")
    config = load_config(top, ["n_embd=16", "--optimizer.learning_rate=1e-2"])
    assert (config.model.ffn.kind, config.model.ffn.hidden) == ("swiglu", 64)
    assert (config.model.n_layer, config.model.n_embd) == (5, 16)
    assert config.optimizer.learning_rate == 1e-2
    # A later layer's horizon replaces the earlier one.
    assert config.train.horizon == ("tokens", 1_000_000)


def test_another_kind_drops_the_old_kinds_settings(tmp_path: Path, base: Path) -> None:
    swiglu = write(tmp_path, "base: base.yaml\nmodel: {ffn: {kind: swiglu, multiple_of: 8}}\n")
    assert load_config(swiglu, {"model.ffn": {"kind": "gelu"}}).model.ffn.model_dump() == {
        "kind": "gelu",
        "hidden": None,
    }
    for order in (["ffn.kind=relu2", "ffn.hidden=8"], ["ffn.hidden=8", "ffn.kind=relu2"]):
        assert load_config(swiglu, order).model.ffn.model_dump() == {"kind": "relu2", "hidden": 8}
    assert load_config(swiglu, ["ffn=relu2"]).model.ffn.kind == "relu2"


def test_a_kind_left_to_its_default_is_dropped_like_any_other(tmp_path: Path, base: Path) -> None:
    for override in ("optimizer.kind=muon", "optimizer=muon"):
        optimizer = load_config(base, [override]).optimizer
        assert optimizer == type(optimizer)(), "nothing of AdamW's is left"


def test_a_trunk_that_counts_its_own_blocks_replaces_an_earlier_n_layer(tmp_path: Path, base: Path) -> None:
    for trunk in COUNT_THEIR_OWN:
        over = write_as(tmp_path / f"{trunk}.yaml", f"base: base.yaml\nmodel:\n  trunk: {trunk}\n")
        config = load_config(over)
        assert (config.model.trunk.kind, config.model.n_layer) == (trunk, None)
        assert load_config(base, {"model.trunk.kind": trunk}) == config
        assert load_config(base, {"trunk": {"kind": trunk}}) == config
        again = load_config(write_as(tmp_path / "resolved.yaml", dump_yaml(config.model_dump(mode="json"))))
        assert again == config
        assert run_id(again) == run_id(config)
        assert load_config(over, ["trunk=stack"]).model.n_layer == 12
        assert load_config(over, ["trunk=shared", "n_layer=3"]).model.n_layer == 3


@pytest.mark.parametrize("trunk", COUNT_THEIR_OWN)
def test_n_layer_beside_or_after_such_a_trunk_is_refused_by_name(tmp_path: Path, base: Path, trunk: str) -> None:
    message = f"n_layer=6: trunk={trunk} takes its depth from {COUNT_THEIR_OWN[trunk]} of model.trunk; take n_layer out"
    beside = write_as(tmp_path / "beside.yaml", f"base: base.yaml\nmodel:\n  trunk: {trunk}\n  n_layer: 6\n")
    with pytest.raises(UserError) as caught:
        load_config(beside)
    assert str(caught.value) == f"{beside}:4: model: {message}"
    earlier = write_as(tmp_path / "earlier.yaml", f"base: base.yaml\ntrunk: {trunk}\n")
    for layers in ((base, {"trunk": trunk, "n_layer": 6}), (earlier, {"n_layer": 6})):
        with pytest.raises(UserError) as caught:
            load_config(*layers)
        assert str(caught.value) == f"command line: model: {message}"


def test_kinds_in_short_form_go_before_the_settings_below_them(base: Path) -> None:
    said = {"mean_loops": 3.0, "depth.kind": "lognormal", "trunk": "recurrent"}
    for order in itertools.permutations(said):
        trunk = load_config(base, {key: said[key] for key in order}).model.trunk
        assert isinstance(trunk, Recurrent)
        assert isinstance(trunk.depth, LogNormalLoops)
        assert trunk.depth.mean_loops == 3.0


def test_a_shipped_base_is_found_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "base: tiny_cpu.yaml\n")
    assert load_config(path).model.n_embd == 64


@pytest.mark.parametrize("key", ["n_layer", "model.n_layer"])
def test_keys_by_leaf_and_by_path(key: str) -> None:
    assert resolve_key(key) == "model.n_layer"


@pytest.mark.parametrize(
    ("flag", "key", "value"),
    [
        ("--use_rope=True", "model.position", "rope"),
        ("--use_rope=False", "model.position", "learned"),
        ("--use_rmsnorm=True", "model.norm", "rmsnorm"),
        ("--use_swiglu=True", "model.ffn.kind", "swiglu"),
        ("--use_swiglu=False", "model.ffn.kind", "gelu_exact"),
        ("--dataset=shakespeare_char", "data.corpus.kind", "shakespeare_char"),
        ("--dataset=openwebtext", "data.corpus.path", "openwebtext"),
        ("--out_dir=out", "runtime.out_dir", "out"),
        ("--max_iters=7", "train.max_iters", 7),
        ("--block_size=32", "model.block_size", 32),
        ("--compile=False", "runtime.compile", False),
        ("--device=cpu", "runtime.device", "cpu"),
        ("--epochs=2", "train.epochs", 2.0),
        ("--dtype=bfloat16", "train.precision", "bf16"),
        ("--init_from=scratch", "init_from", "scratch"),
        ("--init_from=resume", "runtime.resume", "required"),
        ("--lr_decay_iters=50", "schedule.decay_iters", 50),
        ("--always_save_checkpoint=False", "runtime.checkpoint.policy", "best"),
        ("--eval_iters=3", "train.eval_tokens", 3 * 10 * 1024),
        ("--parametrization.mode=SP", "parametrization.mode", "sp"),
    ],
)
def test_nanogpt_flags_keep_their_meaning(base: Path, flag: str, key: str, value: Any) -> None:
    found: Any = load_config(base, [flag])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("flag", ["gradient_accumulation_steps", "grad_accum_steps"])
def test_accumulation_multiplies_the_batch(base: Path, flag: str) -> None:
    config = load_config(base, [f"--{flag}=4", "--batch_size=8", "--eval_iters=2"])
    assert (config.train.batch_size, config.runtime.micro_batch_size) == (32, 8)
    assert config.train.eval_tokens == 2 * 8 * 1024


@pytest.mark.parametrize("mode", ["MuP", "mup", "CompleteP", "COMPLETEP", "depth_mup"])
def test_parametrization_modes_in_any_case(base: Path, mode: str) -> None:
    config = load_config(base, [f"--parametrization.mode={mode}", "base_n_embd=16", "base_n_layer=2"])
    assert config.parametrization.mode == mode.lower()


MISTAKES = [
    ("n_layr=3", "command line: n_layr: no such key; did you mean 'n_layer'?"),
    ("model.n_layr=3", "command line: model.n_layr: no such key; did you mean 'n_layer'?"),
    (
        "kind=gelu",
        "command line: kind: ambiguous; write one of model.ffn.kind, model.trunk.kind, model.trunk.depth.kind",
    ),
    ("n_layer=no", "command line: model.n_layer: expected a whole number, got 'no'"),
    ("n_layer=2.5", "command line: model.n_layer: expected a whole number, got 2.5"),
    ("n_layer=true", "command line: model.n_layer: expected a whole number, got True"),
    ("bias=no", "command line: model.bias: expected true or false, got 'no'"),
    ("n_head=3", "command line: model: n_embd=32 is not divisible by n_head=3"),
    ("n_kv_head=4", "command line: model: n_head=2 is not divisible by n_kv_head=4"),
    (
        "norm=rms",
        "command line: model.norm: no such value 'rms'; did you mean 'rmsnorm'? (allowed: layernorm, rmsnorm)",
    ),
    ("ffn=foo", "command line: model.ffn: no such kind 'foo'; allowed: gelu, "),
    ("ffn=swigluu", "command line: model.ffn: no such kind 'swigluu'; did you mean 'swiglu'? (allowed: gelu, "),
    ("max_iters=0", "command line: train.max_iters: must be greater than 0, got 0"),
    ("max_iters=", "train: needs exactly one of max_iters, epochs, tokens, tokens_per_param, flops; none is given"),
    ("device=gpu", "command line: runtime.device: no such device 'gpu'; allowed: auto, cpu, mps, cuda, cuda:N"),
    ("mode=mup", "command line: parametrization: mode=mup needs base_n_embd"),
    (
        "init_from=gpt9",
        "command line: init_from: gpt9: no such run, checkpoint or folder of weights; did you mean 'gpt2'?",
    ),
    ("init_from=[1]", "command line: init_from: expected scratch, hf:NAME, a folder of weights or a run, got [1]"),
    ("eval_iters=.nan", "command line: eval_iters: expected a whole number of at least 1, got nan"),
    ("grad_accum_steps=.inf", "command line: grad_accum_steps: expected a whole number of at least 1, got inf"),
    ("dtype=[1]", "command line: dtype: no such value [1]; allowed: float32, bfloat16, float16"),
    ("dataset=3", "command line: dataset: expected the name of a corpus or of a folder under data/, got 3"),
    ("seed=18446744073709551616", "command line: seed: must be less than 9223372036854775808"),
    ("threads=100000", "command line: runtime.threads: must be less than or equal to 1024, got 100000"),
    ("n_embd=1e18", "command line: model.n_embd: must be less than or equal to 1048576"),
    ("n_layer=1e11", "command line: model.n_layer: must be less than or equal to 10000"),
    ("batch_size=1e18", "command line: train.batch_size: must be less than or equal to 16777216"),
    ("ffn={kind: gelu, multiple_of: 3}", "command line: model.ffn.multiple_of: no such key; allowed: kind, hidden"),
    ("schedule={kind: constant, min_lr: 1}", "schedule.min_lr: no such key; allowed: kind, warmup_iters"),
    ("checkpoint=always", "command line: runtime.checkpoint.policy: no such value 'always'"),
    ("data.corpus.kind=bin", "command line: data.corpus.path: is missing"),
    ("use_rope=3", "command line: use_rope: expected True or False, got 3"),
    ("micro_batch_size=3", "command line: train.batch_size=10 is not divisible by runtime.micro_batch_size=3"),
    ("min_lr=1.0", "command line: schedule.min_lr=1.0 is above optimizer.learning_rate=0.0003"),
    ("model=3", "command line: model: expected a mapping of keys to values, got 3"),
    ("checkpoint=every_n", "command line: runtime.checkpoint: policy=every_n and every=None do not go together"),
    ("tokens", "command line: tokens: expected key=value"),
    ("tokens={", "command line: tokens: '{' is not a value YAML can read"),
    ("dropout=.nan", "command line: model.dropout: must be a finite number"),
    ("trunk={kind: random2d, vertical: 3}", "command line: model.trunk.vertical: expected [least, most], got 3"),
    ("trunk={kind: random2d, vertical: [1]}", "model.trunk.vertical: expected [least, most], got [1]"),
    ("trunk={kind: random2d, vertical: [1, 2, 3]}", "model.trunk.vertical: expected [least, most], got [1, 2, 3]"),
    (
        "trunk={kind: recurrent, depth: {kind: poisson}}",
        "model.trunk.depth: no such kind 'poisson'; did you mean 'poisson_lognormal'?",
    ),
    (
        "trunk={kind: recurrent, depth: {kind: lognormal, max_loops: 2}}",
        "model.trunk.depth: mean_loops=4 is above max_loops=2",
    ),
    ("trunk={groups: 2}", "model.trunk.groups: no such key; allowed: kind; groups belongs to kind shared"),
    ("trunk.vertical=3", "model.trunk.vertical: no such key; allowed: kind; vertical belongs to kind random2d"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_wrong_override_gets_one_line(base: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(base, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  n_layr: 3\n", "config.yaml:2: model.n_layr: no such key; did you mean 'n_layer'?"),
        ("modle:\n  n_layer: 3\n", "config.yaml:1: modle: no such key; did you mean 'model'?"),
        (
            "train: {max_iters: 2}\nmodel: {n_layer: x}\n",
            "config.yaml:2: model.n_layer: expected a whole number, got 'x'",
        ),
        ("a: 1\nb: 2\na: 3\n", "/config.yaml:3: a: key given twice (first on line 1)"),
        ("n_layer: 3\nmodel: {n_layer: 5}\n", "config.yaml:2: model.n_layer: given twice (as n_layer and as model)"),
        ("a: &x [*x]\n", "config.yaml: not YAML: an alias refers to itself"),
        ("model:\n  n_layer: 1\n  n_layer: 2\n", "config.yaml:3: model.n_layer: key given twice (first on line 2)"),
        ("train: {tokens: 3, epochs: 2}\n", "config.yaml:1: train: needs exactly one of"),
        ("- 1\n", "config.yaml:1: expected a mapping of keys to values, found a list"),
        ("a: [1\n", "config.yaml:2: not YAML"),
        ("base: nowhere.yaml\n", "config.yaml:1: base: no such file: nowhere.yaml"),
        ("base: tiny_cpy.yaml\n", "did you mean 'tiny_cpu.yaml'?"),
        ("base: config.yaml\n", "leads back to"),
        ("base: [1]\n", "config.yaml:1: base: expected the name of a config file, got [1]"),
        (
            "train:\n  max_iters: 2\nmodel: {ffn: {kind: gelu, multiple_of: 2}}\n",
            "config.yaml:3: model.ffn.multiple_of: no such key",
        ),
    ],
)
def test_a_wrong_file_gets_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "not YAML" in message or "not YAML" not in str(caught.value)


def test_a_missing_file_is_named_with_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, BASE, "shakespeare.yaml")
    with pytest.raises(UserError, match=r"shakespear\.yaml: no such file; did you mean 'shakespeare\.yaml'\?"):
        load_config(tmp_path / "shakespear.yaml")


def test_runtime_is_no_identity(base: Path) -> None:
    plain = load_config(base)
    assert run_id(load_config(base, ["device=cpu", "micro_batch_size=5", "out_dir=x", "log_interval=1"])) == run_id(
        plain
    )
    assert run_id(load_config(base, ["seed=2"])) != run_id(plain)
    assert run_id(load_config(base, ["learning_rate=3.0e-4"])) == run_id(plain)
    # Dropout draws one mask per micro-batch, so there the cut is part of the result.
    assert run_id(load_config(base, ["dropout=.1", "micro_batch_size=5"])) != run_id(load_config(base, ["dropout=.1"]))
