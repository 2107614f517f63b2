"""No support pair of a user is in a training batch, whatever table is given; and a new person's pairs are all used."""

import pytest
from safetensors.torch import load_file

from diffpo.captioners.contrast import ClipEmbedder
from diffpo.curate.embedding import Embedding, read_embedder
from diffpo.curate.users import UserOptions, embed_new, embed_users
from diffpo.data import Pairs, load_splits
from diffpo.data.cache import EncodingCache
from diffpo.data.loader import PairLoader
from diffpo.data.plan import Schedule
from diffpo.data.splits import normalise
from diffpo.data.users import RowUsers
from diffpo.errors import UserError
from diffpo.media.users import EMBEDDER, Users

CLIP = Embedding(ClipEmbedder(path="shapes:pickscore", device="cpu"))


@pytest.fixture
def pairs(records, jsonl):
    rows = records(30, user_id=lambda i: ["ann", "bob", "cat"][i % 3])
    for i, row in enumerate(rows):
        row["prompt"] = f"Prompt {i // 3}"
    return jsonl(rows)


def test_no_support_pair_is_in_any_training_batch_of_its_user(pairs, encoder, tmp_path):
    """Of the table that the users were made of as well as of what is left of it."""
    options = UserOptions(pairs=2, draws=2, unseen=0.4, seed=2)
    done = embed_users(Pairs(path=pairs), CLIP, tmp_path / "users", options)
    assert done.seen and done.unseen
    users = Users.open(done.folder)
    support = {
        (name, normalise(prompt)) for name, rows in users.draws.items() for row in rows for prompt in users.prompts[row]
    }
    for path in (pairs, str(done.folder / "pairs")):
        source = Pairs(path=path, resolution=16)
        table = load_splits(source).train
        cache = EncodingCache(table, source, encoder, seed=4, sides=("chosen", "rejected"))
        cache.fill()
        rows = RowUsers(table, users, 0.0)
        loader = PairLoader(table, cache.open(), seed=4, caption_dropout=0.0, users=rows)
        met = set()
        for batches in loader.updates(Schedule(0, loader.groups, micro_batch=2), 0, 12):
            for batch in batches:
                for row, states in zip(batch.index.tolist(), batch.cond.chosen.user, strict=True):
                    name, prompt = table.cell(row, "user_id"), table.cell(row, "prompt")
                    assert (name, normalise(prompt)) not in support, "a support pair is being learned from"
                    assert users.seen[name]
                    assert any((states == users.states(draw)).all() for draw in users.draws_of(name))
                    met.add(row)
        assert len(met) > 4


def test_a_new_person_is_embedded_by_all_of_their_pairs(pairs, records, jsonl, tmp_path):
    done = embed_users(Pairs(path=pairs), CLIP, tmp_path / "users", UserOptions(pairs=1, draws=4, directions=2))
    like = Embedding(CLIP.embedder, read_embedder(done.folder / EMBEDDER)[1])
    new = records(3)
    folder = embed_new(Pairs(path=jsonl(new, "new.jsonl")), like, ["dan"])
    users = Users.open(folder)
    assert users.draws == {"dan": (0,)} and users.embedding == Users.open(done.folder).embedding
    assert len(users.prompts[0]) == 3
    states = load_file(folder / "states.safetensors")["states"]
    assert states.shape == (1, 1, 2) and states.float().norm() == pytest.approx(1, abs=1e-3)
    assert embed_new(Pairs(path=str(tmp_path / "table" / "new.jsonl")), like, ["dan"]) == folder
    two = Users.open(embed_new(Pairs(path=pairs), like, ["bob", "ann"]))
    assert set(two.draws) == {"ann", "bob"} and len(two.prompts[0]) == 10
    with pytest.raises(UserError, match=r"no pairs of eve: .* There are pairs of ann, bob, cat"):
        embed_new(Pairs(path=pairs), like, ["eve"])
