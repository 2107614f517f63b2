"""Paraphrasers of the real classes: what they are told, and that a text is a function of its own row."""

import shutil

import pytest
import torch

from diffpo.captioners import Dipper, Instruct
from diffpo.captioners.dipper import split_windows
from diffpo.errors import ConfigError, UserError

LONG = "A cat sits. It is red! Is it big? No. The end"
CAPTIONS = ["a cat", LONG, "two dogs run."]
KEYS = [4, 5, 6]


@pytest.fixture
def dipper(language_model):
    path = str(language_model("t5"))
    return lambda **options: Dipper(path=path, device="cpu", **{"max_new_tokens": 10, **options})


@pytest.fixture
def instruct(language_model):
    path = str(language_model("llama"))
    return lambda **options: Instruct(path=path, device="cpu", **{"max_new_tokens": 10, **options})


@pytest.mark.parametrize(("level", "code"), [("weak", 60), ("medium", 40), ("strong", 20)])
def test_dippers_control_codes(level, code):
    """Diversities 40, 60 and 80 are the codes 60, 40 and 20; order diversity 0 is the code 100."""
    made = Dipper(level=level, prefix="Go.").control("a cat", ["One.", " Two. "])
    assert made == f"lexical = {code}, order = 100 Go. One. Two. <sent> a cat </sent>"
    assert Dipper(level=level, prefix="").control("a cat", []) == f"lexical = {code}, order = 100 <sent> a cat </sent>"


def test_dippers_settings_are_the_papers():
    assert (Dipper().temperature, Dipper().top_p, Dipper().max_new_tokens, Dipper().window) == (1.0, 0.75, 256, 3)
    with pytest.raises(ConfigError, match=r"order is 30; allowed are 0, 20"):
        Dipper(order=30)


def test_windows_of_sentences():
    assert split_windows(LONG, 3) == ["A cat sits. It is red! Is it big?", "No. The end"]
    assert split_windows(" a  cat at 3.5 m ", 3) == ["a cat at 3.5 m"]


def test_dipper_writes_window_by_window(dipper):
    """The second window reads what was written for the first; greedy, with plain transformers."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    made = dipper(temperature=0.0, level="strong")
    tokenizer, model = AutoTokenizer.from_pretrained(made.path), AutoModelForSeq2SeqLM.from_pretrained(made.path)

    def run(text):
        ids = tokenizer(text, return_tensors="pt").input_ids
        return tokenizer.decode(model.generate(ids, max_new_tokens=10, do_sample=False)[0], skip_special_tokens=True)

    start = f"lexical = 20, order = 100 {made.prefix}"
    first = run(f"{start} <sent> A cat sits. It is red! Is it big? </sent>")
    again = " ".join(first.split())
    second = run(f"{' '.join([start, again]).strip()} <sent> No. The end </sent>")
    assert first.strip() and second.strip()
    assert made.perturb([LONG], [0]) == [" ".join(f"{first} {second}".split())]


def test_instruct_is_what_plain_transformers_says(instruct):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = instruct(level="weak")
    tokenizer, model = AutoTokenizer.from_pretrained(made.path), AutoModelForCausalLM.from_pretrained(made.path)
    told = made.provenance["instruction"].replace("{caption}", "a cat")
    assert "one small detail" in told
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": told}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert made.perturb(["a cat"], [0]) == [" ".join(tokenizer.decode(tokens, skip_special_tokens=True).split())]


@pytest.mark.parametrize("name", ["dipper", "instruct"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_does_not_depend_on_its_batch(name, temperature, request):
    perturber = request.getfixturevalue(name)(temperature=temperature)
    alone = [perturber.perturb([c], [k])[0] for c, k in zip(CAPTIONS, KEYS, strict=True)]
    assert len(set(alone)) == 3
    assert perturber.perturb(CAPTIONS, KEYS) == alone
    assert perturber.perturb(CAPTIONS[::-1], KEYS[::-1]) == alone[::-1]


@pytest.mark.parametrize("name", ["dipper", "instruct"])
def test_the_level_and_the_key_decide(name, request):
    make = request.getfixturevalue(name)
    texts = {make(level=level, temperature=0.0).perturb([LONG], [0])[0] for level in ("weak", "medium", "strong")}
    assert len(texts) == 3
    drawn = make(temperature=20.0, top_p=1.0)
    assert drawn.perturb([LONG], [0]) == drawn.perturb([LONG], [0]) != drawn.perturb([LONG], [1])


def test_the_global_random_state_stays(dipper):
    before = torch.random.get_rng_state()
    made = dipper()
    _ = made.model
    after_loading = torch.random.get_rng_state()
    made.perturb(["a cat"], [0])
    assert torch.equal(torch.random.get_rng_state(), after_loading) and len(before) == len(after_loading)


def test_dippers_tokenizer_may_lie_elsewhere(language_model, tmp_path):
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(language_model("t5") / name, tmp_path / name)
    with pytest.raises(UserError, match=r"google/t5-v1_1-xxl.*neither in the local cache"):
        _ = Dipper(path=str(tmp_path)).provenance
    options = {"device": "cpu", "max_new_tokens": 10}
    elsewhere = Dipper(path=str(tmp_path), tokenizer=str(language_model("t5")), **options)
    assert elsewhere.perturb(CAPTIONS, KEYS) == Dipper(path=str(language_model("t5")), **options).perturb(
        CAPTIONS, KEYS
    )
