"""Prompt files that others wrote: what is no text is refused, with file, row and kind; nothing is guessed."""

import codecs

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffpo.__main__ import main
from diffpo.errors import UserError
from diffpo.media.prompts import load_prompts

CHAT = [{"role": "user", "content": "a cat"}]


def test_a_chat_is_no_prompt(tmp_path, monkeypatch, capsys):
    """Its Python text was drawn: "[{'role': ...}]"."""
    path = tmp_path / "chat.parquet"
    pq.write_table(pa.table({"prompt": [CHAT, CHAT]}), path)
    arguments = ["generate", "shapes:base", "--prompts", str(path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["diffpo", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "row 1: `prompt` must be a text, got list" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'prompt,n\none,1\n"two,2\nthree,3\n', "row that begins in line 3.*never closed"),
        ("a.csv", b"prompt,prompt\none,1\n", "column 'prompt' twice"),
        ("a.jsonl", b'{"prompt": 3}\n', "line 1.*prompt.*must be a text, got int"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": "half \\ud83d"}\n', "line 2 holds half of a character"),
        ("a.txt", b"caf\xe9\n", "line 1.*not UTF-8"),
        ("a.txt", "lost \ufffd".encode(), "a character that was lost"),
        ("a.txt", b"one\0two", "NUL"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize(
    "content", ["\ufeffa red circle\n".encode(), codecs.BOM_UTF16_LE + "a red circle\n".encode("utf-16-le")]
)
def test_byte_order_marks_are_no_part_of_a_prompt(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert load_prompts(tmp_path / "a.txt").prompts == ("a red circle",)
