"""Configurations: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
import yaml
from runs import ROOT, command

from diffpo.config.loading import find_config
from diffpo.config.run import Config, Train, build, load_config
from diffpo.data import Pairs, PickAPic
from diffpo.errors import ConfigError
from diffpo.methods import DPO, METHODS, SFT
from diffpo.models.lora import LoRA
from diffpo.models.tuning import Full

FILES = sorted(file for file in (ROOT / "configs").glob("*.yaml") if not file.stem.startswith("eval-"))
SHAPES = "configs/shapes-dpo.yaml"
BLOCKS, SECTIONS = ("model", "method", "data"), ("train", "sample")
BLOCK_CLASSES = ("Train", "Sample", "Tuning", "LoRA", "Source", "DPO", "GenerateOptions")


def tree(**blocks):
    """The smallest configuration, with fields replaced."""
    whole = {
        "model": {"name": "full", "path": "owner/model"},
        "method": {"name": "dpo"},
        "data": {"name": "pairs", "path": "owner/pairs"},
        "train": {"steps": 3, "output": "runs/x"},
    }
    for key, fields in blocks.items():
        whole[key] = whole.get(key, {}) | fields
    return whole


def refusal(given, *overrides):
    """What a tree (or a packaged file with overrides) is refused with."""
    with pytest.raises(ConfigError) as caught:
        build(given) if isinstance(given, dict) else load_config(given, overrides)
    return str(caught.value)


def test_every_method_has_a_packaged_file_and_real_models_have_theirs():
    names = {file.stem for file in FILES}
    for_images = {name for name, method in METHODS.items() if not method.requires & {"segments", "user_id"}}
    assert {f"shapes-{name}" for name in for_images - {"rpo"}} <= names, "rpo learns one subject, and shapes has none"
    assert {"sd15-dpo", "sd15-dpo-lora", "sd21-dpo", "sdxl-dpo", "sdxl-dpo-lora", "sd35-dpo-lora"} <= names
    assert {"wan21-densedpo", "sd15-ppd", "sd21-rpo"} <= names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_packaged_file_loads_and_survives_a_round_trip(file):
    config = load_config(file)
    assert config.train.output == f"runs/{file.stem}"
    text = yaml.safe_dump(config.to_dict())
    assert build(yaml.safe_load(text)) == config


def test_learning_rates_are_those_of_the_optimizer():
    rates = {file.stem: load_config(file).train.learning_rate for file in FILES}
    assert rates["sd15-dpo"] == rates["sdxl-dpo"] == pytest.approx(1e-8 * 2048)
    for name in ("sd15-dpo", "sdxl-dpo"):
        train = load_config(f"configs/{name}.yaml").train
        assert train.batch * train.accumulate == 2048


def test_to_dict_is_plain_and_names_the_blocks():
    plain = build(tree(train={"trackers": ["tensorboard"]}, sample={"prompts": ["a", "b"], "seeds": [1, 2]})).to_dict()
    assert {key: plain[key]["name"] for key in BLOCKS} == {"model": "full", "method": "dpo", "data": "pairs"}
    assert plain["train"]["trackers"] == ["tensorboard"]
    assert plain["sample"]["seeds"] == [1, 2]
    assert set(plain) == {*BLOCKS, *SECTIONS}


def test_defaults_are_overridden_by_the_file_and_it_by_the_override(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree(method={"beta": 7}, train={"seed": 3, "output": None})))
    config = load_config(file, ["train.seed=4", "sample.steps=9"])
    assert (config.method.beta, config.train.seed, config.sample.steps) == (7, 4, 9)
    assert config.train.batch == Train(steps=1).batch
    assert config.train.output == "runs/mine"


def test_a_method_on_the_command_line_replaces_the_block():
    config = load_config(SHAPES, ["method=sft"])
    assert config.method == SFT()  # no beta is left
    assert load_config(SHAPES, ["method=dpo"]).method == DPO()
    assert load_config(SHAPES, ["method.beta=17"]).method == DPO(beta=17, guard=0.9)


def test_a_model_or_a_source_keeps_the_fields_that_both_have():
    config = load_config(SHAPES, ["model=lora", "model.rank=8", "data=pairs"])
    assert isinstance(config.model, LoRA) and isinstance(config.data, Pairs)
    assert (config.model.path, config.model.rank) == ("shapes:base", 8)
    assert (config.data.path, config.data.resolution) == ("shapes:pairs", 64)
    back = load_config("configs/sd15-dpo-lora.yaml", ["model=full", "model.dtype=null"])
    assert isinstance(back.model, Full) and isinstance(back.data, PickAPic)


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", "+1e-6", "0.000001"])
def test_numbers_that_yaml_leaves_strings_are_read(text):
    assert load_config(SHAPES, [f"train.learning_rate={text}"]).train.learning_rate == 1e-6


def test_whole_numbers_may_be_written_with_an_exponent():
    assert load_config(SHAPES, ["train.steps=1e3"]).train.steps == 1000


def test_names_that_look_like_numbers_stay_names(tmp_path):
    assert build(tree(data={"path": "1e5"})).data.path == "1e5"


def test_an_unknown_key_names_the_close_one():
    message = refusal(SHAPES, "method.bta=1")
    assert "method.bta: unknown key. Did you mean beta?" in message
    assert message.startswith(f"{SHAPES}: 1 mistake(s)")


def test_an_unknown_name_and_an_unknown_block_name_the_close_ones():
    assert "method.name: unknown method 'dop'. Did you mean dpo? Allowed are dpo, sft" in refusal(
        tree(method={"name": "dop"})
    )
    assert "trian: unknown key. Did you mean train?" in refusal(tree(trian={"steps": 1}))
    assert "data.name: is missing. Allowed are pairs, pickapic" in refusal(tree() | {"data": {"path": "x"}})


def test_all_mistakes_are_told_at_once():
    message = refusal(
        tree(
            model={"atention": "native", "dtype": "half"},
            method={"bta": 1},
            data={"resolution": "big", "limit": 0},
            train={"steps": "many", "batch": 1.5, "optimizer": "sgd"},
            sample={"seeds": "x"},
            extra={},
        )
    )
    told = {line.split(": ")[0].strip() for line in message.splitlines()[1:]}
    wanted = {"extra", "model.atention", "model.dtype", "method.bta", "data.resolution"}
    assert told == wanted | {"data.limit", "train.steps", "train.batch", "train.optimizer", "sample.seeds.0"}
    assert f": {len(told)} mistake(s)" in message
    assert "(given 'many')" in message and "'adamw', 'adamw8bit' or 'adafactor'" in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": {"steps": 0}}, "steps is 0"),
        ({"train": {"ema": 1.0}}, "ema is 1.0"),
        ({"train": {"learning_rate": -1e-5}}, "learning_rate is -1e-05"),
        ({"train": {"keep_last": 0}}, "keep_last is 0"),
        ({"data": {"limit": 0}}, "limit is 0"),
        ({"data": {"validation_fraction": 1.5}}, "validation_fraction is 1.5"),
        ({"model": {"name": "lora", "rank": 0}}, "rank is 0"),
        ({"data": {"cache": "maybe"}}, "data.cache"),
        ({"train": {"trackers": ["paper"]}}, "train.trackers.0"),
    ],
)
def test_values_out_of_range_are_refused(changes, told):
    assert told in refusal(tree(**changes))


def test_a_missing_field_is_named():
    given = tree()
    del given["train"]["steps"]
    assert "train.steps: is missing" in refusal(given)
    del given["model"]["path"]
    assert "model.path: is missing" in refusal(given)
    assert "data.name: unknown source 'x'" in refusal(tree() | {"data": "x"})
    assert "data: should be a block of keys, not ['x']" in refusal(tree() | {"data": ["x"]})
    assert build(tree() | {"method": "dpo,beta=3"}).method == DPO(beta=3)


@pytest.mark.parametrize(
    ("model", "train", "method", "told"),
    [
        ({"dtype": "float16"}, {}, "dpo", "model.dtype: float16"),
        ({"dtype": "bfloat16"}, {"mixed_precision": "fp16"}, "dpo", "train.mixed_precision (bf16; it is fp16)"),
        ({"dtype": "float32"}, {"dtype": "float64"}, "dpo", "train.dtype: float64 goes with"),
        ({}, {"dtype": "float64", "mixed_precision": "bf16"}, "dpo", "train.dtype: float64 goes with"),
        ({"recomputed_share": 0.5}, {}, "dpo", "model.recomputed_share: is the share that gradient checkpointing"),
        ({"name": "lora", "dropout": 0.1}, {}, "dpo", "model.dropout: must be 0"),
    ],
)
def test_values_that_clash_are_refused(model, train, method, told):
    assert told in refusal(tree(model=model, train=train, method={"name": method}))


@pytest.mark.parametrize(
    ("model", "train", "method"),
    [
        ({"dtype": "float16"}, {"mixed_precision": "fp16"}, "dpo"),
        ({"dtype": "bfloat16"}, {"mixed_precision": "bf16"}, "dpo"),
        ({}, {"dtype": "float64"}, "dpo"),
        ({"name": "lora", "dropout": 0.1}, {}, "sft"),  # which has no reference
    ],
)
def test_values_that_fit_are_not(model, train, method):
    assert isinstance(build(tree(model=model, train=train, method={"name": method})), Config)


def test_a_missing_file_lists_the_packaged_ones():
    message = refusal("configs/shapes-dop.yaml")
    assert "no config at configs/shapes-dop.yaml. Did you mean configs/shapes-dpo.yaml?" in message
    assert all(f"configs/{file.name}" in message for file in FILES)


def test_a_packaged_file_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(SHAPES).is_file()
    assert find_config("shapes-dpo.yaml") == find_config(SHAPES)
    own = Path("configs") / "shapes-dpo.yaml"
    own.parent.mkdir()
    own.write_text("{}")
    assert find_config(SHAPES) == own  # the user's own comes first
    with pytest.raises(ConfigError):
        find_config("elsewhere/shapes-dpo.yaml")


@pytest.mark.parametrize(("text", "told"), [("model: [", "is no YAML"), ("- a\n- b", "it holds a list")])
def test_a_file_that_is_no_configuration(tmp_path, text, told):
    (tmp_path / "x.yaml").write_text(text)
    assert told in refusal(tmp_path / "x.yaml")


@pytest.mark.parametrize("override", ["method.beta", "=3", "train.steps.x=3", "method.beta=[1"])
def test_an_override_that_is_none(override):
    assert "override" in refusal(SHAPES, override)


def undocumented(block):
    """Fields of a class that no docstring follows, and the number of all."""
    fields = [(i, node) for i, node in enumerate(block.body) if isinstance(node, ast.AnnAssign)]
    fields = [(i, node) for i, node in fields if "ClassVar" not in ast.unparse(node.annotation)]
    after = {i: block.body[i + 1] if i + 1 < len(block.body) else None for i, _ in fields}
    bare = [node.target.id for i, node in fields if not isinstance(getattr(after[i], "value", None), ast.Constant)]
    return bare, len(fields)


def test_every_field_is_documented():
    """A docstring under every field, where a reader of the class looks for it."""
    counted = 0
    for file in (
        "config/run.py",
        "models/tuning.py",
        "data/records.py",
        "methods/dpo.py",
        "generation/generate.py",
    ):
        for node in ast.parse((ROOT / "diffpo" / file).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in BLOCK_CLASSES:
                bare, fields = undocumented(node)
                assert not bare, node.name
                counted += fields
    assert counted > len(dataclasses.fields(Train)) + len(dataclasses.fields(LoRA))


def test_mistakes_are_told_before_anything_heavy_loads():
    """The command of the README's first mistake, in a process of its own."""
    code = (
        "import sys, diffpo.__main__ as m; sys.argv = ['diffpo', 'train', 'configs/shapes-dpo.yaml', 'method.bta=1']\n"
        "try: m.main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, [name for name in ('diffusers', 'transformers', 'datasets', 'peft') if name in sys.modules])"
    )
    done = command("-c", code)
    assert done.stdout.strip() == "2 []", done.stderr
    assert "method.bta: unknown key. Did you mean beta?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_part_of_an_inner_block_leaves_the_rest_as_the_method_has_it():
    """SmPO's own inversion has 5 steps and 1 correction; DPO has none: its parts come from the block itself."""
    smpo = load_config("configs/shapes-smpo.yaml", ["method=smpo", "method.inversion.steps=10"]).method.inversion
    assert (smpo.steps, smpo.renoise) == (10, 1)
    dpo = load_config("configs/shapes-dpo.yaml", ["method.inversion.steps=3"]).method.inversion
    assert (dpo.steps, dpo.renoise) == (3, 0)
    none = load_config("configs/shapes-smpo.yaml", ["method=smpo", "method.inversion=null"]).method.inversion
    assert none is None
    with pytest.raises(ConfigError, match=r"method\.inversion\.stepz: unknown key"):
        load_config("configs/shapes-smpo.yaml", ["method.inversion.stepz=10"])
