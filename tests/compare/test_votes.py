"""Human votes: reading them, and what they come to."""

import pytest

from diffpo.compare.votes import read_votes
from diffpo.errors import UserError

CSV = """model_a,model_b,prompt,seed,choice,user_id,remark
base,tuned,"a cat, sleeping",0,b,ann,
tuned,base,"a cat, sleeping",0,A,bob,nice
base,tuned,a dog,,tie,ann,
other,tuned,a dog,1,a,ann,
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "votes.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_votes_become_shares(write):
    """Both like the tuned cat, whichever side it stood on; the dog is a tie."""
    votes = read_votes(write(CSV))
    assert votes.models == ["base", "tuned", "other"] and votes.provenance["users"] == 2
    pairs = votes.pairs("tuned", "base")
    assert pairs.model.tolist() == [1.0, 1.0, 0.5] and pairs.baseline.tolist() == [0.0, 0.0, 0.5]
    assert pairs.prompts == ("a cat, sleeping", "a cat, sleeping", "a dog")
    assert votes.pairs("other", "tuned").model.tolist() == [1.0]
    assert [vote.seed for vote in votes.votes] == [0, 0, None, 1]


def test_a_file_of_a_spreadsheet_program(write):
    """Byte-order mark, carriage returns, prompt ids, no users."""
    votes = read_votes(write("\ufeffmodel_a,model_b,prompt_id,choice\r\nx,y,7,tie\r\n"))
    assert votes.votes[0].prompt == "7" and votes.provenance["users"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "lacks the columns model_a, model_b, choice, prompt .or prompt_id.; it has a"),
        ("model_a,model_b,prompt,choice\n", "holds no vote"),
        ("model_a,model_b,prompt\nx,y,p\n", "lacks the columns choice"),
        ("model_a,model_b,prompt,choice\nx,y,p,a\nx,y,p,left\n", "line 3: choice must be a, tie or b, got 'left'"),
        ("model_a,model_b,prompt,choice\nx,y,p\n", "line 2 has more or fewer values"),
        ("model_a,model_b,prompt,choice\nx,x,p,a\n", "line 2 compares x with itself"),
        ("model_a,model_b,prompt,choice\nx,y,,a\n", "line 2 has no prompt"),
        ("model_a,model_b,prompt,choice,seed\nx,y,p,a,one\n", "line 2: seed must be a whole number or empty"),
        ("model_a,model_b,prompt,choice,seed\nx,y,p,a,--1\n", "line 2: seed must be a whole number or empty"),
    ],
)
def test_what_is_no_vote(write, text, message):
    with pytest.raises(UserError, match=message):
        read_votes(write(text))


def test_votes_that_are_not_there(write, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_votes(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no vote between base and other; it has votes on base, tuned, other"):
        read_votes(write(CSV)).between("base", "other")
    path = tmp_path / "latin.csv"
    path.write_bytes("model_a,model_b,prompt,choice\nx,y,caf\xe9,a\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read_votes(path)
