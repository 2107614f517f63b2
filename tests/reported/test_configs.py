"""Configurations of others: what YAML makes of words and numbers, and documents that would take the machine."""

from __future__ import annotations

import resource
import sys
import time

import pytest

from diffpo.config.evaluation import load_evaluation
from diffpo.config.run import load_config
from diffpo.disk.plain import read_yaml
from diffpo.errors import ConfigError

HEAD = """
model: {name: lora, path: shapes:base}
method: dpo
data: {name: pairs, path: pairs.jsonl, resolution: 64}
"""
BOMB = "a: &a0 {x: 1, y: 2}\n" + "".join(
    f"{chr(98 + i)}: &a{i + 1} {{{', '.join(f'{key}: *a{i}' for key in 'pqrstuv')}}}\n" for i in range(12)
)
LISTS = "a0: &a0 [lol]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(30))
REFUSED = {
    "a bomb of mappings": (BOMB, "holds more than 20,000 values"),
    "a bomb of lists": (LISTS, "values, with every reference"),
    "a cycle": ("train: &t {steps: 3, x: *t}", "refers to itself"),
    "a cycle of two": ("a: &a {b: &b {a: *a}}", "refers to itself"),
    "a list in itself": ("a: &a [*a]", "refers to itself"),
    "a key that is itself": ("&a ? *a : 1", ""),
    "3,000 lists": ("a: " + "[" * 3000 + "]" * 3000, "nested more than"),
    "3,000 mappings": ("a: " + "{a: " * 3000 + "}" * 3000, "nested more than"),
    "3,000 levels of lines": ("\n".join(" " * i + "a:" for i in range(3000)), "larger than 128 KiB"),
    "a megabyte": ("a: " + "x" * (1 << 20), "larger than 128 KiB; keep long lists in files of their own"),
    "a key twice": ("train: {steps: 3, steps: 5}", "the key steps stands twice (line 1)"),
    "a block twice": ("train: {steps: 3}\nmodel: {}\ntrain: {steps: 4}", "the key train stands twice (line 3)"),
    "a null key": ("null: {steps: 3}", "a key is a word; it is null (line 1)"),
    "an empty key": ("?\n: {steps: 3}", "a key is a word; it is empty (line 1)"),
    "a key that is a list": ("? [a]\n: 3", "a key is a word"),
    "nothing": ("", "is empty; it should hold the keys"),
    "a comment": ("# nothing\n", "is empty; it should hold the keys"),
    "two documents": ("a: 1\n---\nb: 2", "holds 2 documents"),
    "a Python object": ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python"),
    "a tag": ("a: !include other.yaml", "the tag !include is not allowed (line 1)"),
    "a text": ("train", "it holds a str"),
    "a broken one": ("train: [", "is no YAML"),
    "an unknown reference": ("train: *t", "is no YAML"),
    "Latin-1": ("model: {name: é}".encode("latin-1"), "is not UTF-8 (line 1)"),
    "UTF-16": (HEAD.encode("utf-16"), "is not UTF-8 (line 1)"),
    "a control character": ("a: \x07", "is no YAML"),
    "half of a character": ('train: {output: "\\uDC00"}', r"'\udc00' is half of a character (line 1); write the"),
    "half of a character in a list": ('a:\n- "x\\uD83D"', r"'\ud83d' is half of a character (line 2); write the"),
    "half of a character in a key": ('"\\uD83D": 1', r"'\ud83d' is half of a character (line 1); write the"),
}


def run(capsys, monkeypatch, *argv):
    """Run the command line in this process; returns exit code and standard error."""
    from diffpo.__main__ import main

    monkeypatch.setattr(sys, "argv", ["diffpo", *map(str, argv)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    return code, capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "data inspect"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_document_is_refused_at_once(case, command, tmp_path, capsys, monkeypatch):
    content, told = REFUSED[case]
    file = tmp_path / "x.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    code, err = run(capsys, monkeypatch, *command.split(), file)
    assert code == 2 and told in err and "bug" not in err, err
    assert time.perf_counter() - start < 5  # a second on a machine that does nothing else
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 << 10


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("steps: 017", "train.steps: a number that begins with 0 may be octal or not; write 17"),
        ("steps: 1:30", "train.steps: a number with colons may be read to the base of sixty; write 90"),
        ("steps: 0b9", "train.steps: input should be a valid integer"),
        ("steps: 0x_", "train.steps: input should be a valid integer"),
        ("steps: 0__1", "train.steps: a number that begins with 0 may be octal or not; write 1,"),
        ("{steps: 3, learning_rate: 1.2.3e4}", "train.learning_rate: input should be a valid number"),
        ("steps: yes", "train.steps: a number is meant here, and this is a truth value (given 'yes')"),
        ("steps: on", "train.steps: a number is meant here"),
        ("{steps: 3, learning_rate: true}", "train.learning_rate: a number is meant here"),
        ("{steps: 3, learning_rate: 1:00}", "train.learning_rate: a number with colons"),
        ("{steps: 3, weight_decay: 00.5}", ""),
        ("{steps: 3, ema: .nan}", "train.ema: ema is nan; it must be finite"),
        ("{steps: 3, max_grad_norm: -.inf}", "train.max_grad_norm: max_grad_norm is -inf; it must be finite"),
        ("{steps: 3, output: ''}", "train.output: output is ''; it must be a name that is not empty"),
        ("{steps: 2024-01-01}", "train.steps: input should be a valid integer"),
    ],
)
def test_a_number_that_may_be_another_is_refused(given, told, tmp_path):
    block = given if given.startswith("{") else "{" + given + "}"
    (tmp_path / "x.yaml").write_text(HEAD + f"train: {block}\n")
    if told:
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / "x.yaml")
        assert told in str(caught.value)
    else:
        assert load_config(tmp_path / "x.yaml").train.weight_decay == 0.5


@pytest.mark.parametrize("word", ["no", "off", "No", "'no'", "false"])
def test_no_is_a_word_where_a_word_is_meant(word, tmp_path):
    (tmp_path / "x.yaml").write_text(HEAD + f"train: {{steps: 2, mixed_precision: {word}, compile: {word}}}\n")
    train = load_config(tmp_path / "x.yaml").train
    assert train.mixed_precision == "no" and train.compile is None
    assert load_config(tmp_path / "x.yaml", [f"train.mixed_precision={word}"]) == load_config(tmp_path / "x.yaml")


def test_what_a_text_means_is_for_its_field(tmp_path):
    (tmp_path / "x.yaml").write_text(
        HEAD.replace("pairs.jsonl", "1e5").replace("path: shapes:base", "path: 0123")
        + "train: {steps: 1e3, learning_rate: 1e-6, output: 2024-01-01, split_forward: yes, seed: 0x10}\n"
        + "sample: {prompts: [yes, 12, null it is], seeds: 3}\n"
    )
    config = load_config(tmp_path / "x.yaml")
    assert (config.data.path, config.model.path, config.train.output) == ("1e5", "0123", "2024-01-01")
    assert (config.train.steps, config.train.learning_rate, config.train.seed) == (1000, 1e-6, 16)
    assert config.train.split_forward is True and config.sample.seeds == (3,)
    assert config.sample.prompts == ("yes", "12", "null it is")


def test_references_and_merges_still_work(tmp_path):
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: {<<: [{p: 1}, {p: 2, q: 3}]}"
    found = read_yaml(text, "here")
    assert found["b"] == {"x": "1", "y": "3"} and found["c"] == [found["a"]] * 2
    assert found["d"] == {"p": "1", "q": "3"}


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes((HEAD + "train: {steps: 2}\n").encode("utf-8-sig"))
    assert load_config(tmp_path / "x.yaml").train.steps == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.lr=1e-4", "train.lr: unknown key. Did you mean learning_rate?"),
        ("train.learning-rate=1e-4", "train.learning-rate: unknown key. Did you mean learning_rate?"),
        ("train.epochs=3", "train.epochs: unknown key. Did you mean steps?"),
        ("train.bs=3", "train.bs: unknown key. Did you mean batch?"),
        ("train.batch_size=3", "Did you mean batch?"),
        ("train.optimizer=adam", "(given 'adam'). Did you mean adamw?"),
        ("train.mixed_precision=bfloat16", "Did you mean bf16?"),
        ("lr=1e-4", "lr: unknown key. Did you mean train.learning_rate?"),
        ("train.beta=3", "train.beta: unknown key. Did you mean method.beta?"),
        ("model.lora_alpha=3", "model.lora_alpha: unknown key. Did you mean alpha?"),
        ("sample.cfg=3", "Did you mean guidance?"),
    ],
)
def test_what_others_call_it_is_understood(override, told):
    with pytest.raises(ConfigError) as caught:
        load_config("configs/sd15-dpo-lora.yaml", [override])
    assert told in str(caught.value)


def test_a_bare_text_where_a_list_is_meant(tmp_path):
    config = load_config("configs/shapes-dpo.yaml", ["train.trackers=tensorboard", "sample.seeds=7"])
    assert config.train.trackers == ("tensorboard",) and config.sample.seeds == (7,)
    loaded = load_evaluation("configs/eval-shapes.yaml", ["scorers=pickscore,scale=cosine", "seeds=7"])
    assert [(scorer.name, scorer.scale) for scorer in loaded.scorers] == [("pickscore", "cosine")]
    assert loaded.seeds == (7,)
    with pytest.raises(ConfigError, match=r"scorers.0: scorer option 'clip' should look like key=value"):
        load_evaluation("configs/eval-shapes.yaml", ["scorers=pickscore,clip"])


def test_scorers_as_blocks(tmp_path):
    text = "{models: {a: x, b: y}, prompts: p, scorers: [{name: pickscore, scale: cosine}, hpsv2.1]}"
    (tmp_path / "x.yaml").write_text(text)
    made = load_evaluation(tmp_path / "x.yaml").scorers
    assert [(scorer.name, scorer.scale) for scorer in made] == [("pickscore", "cosine"), ("hpsv2.1", "cosine")]
