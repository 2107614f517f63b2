"""Whole files and folders: under kills, full disks, links, and several writers."""

import os
import signal
import stat
import threading
import time

import pytest

from diffpo.disk import files
from diffpo.disk.files import UNFINISHED, sweep, whole_folder, write_file, write_json
from diffpo.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def in_a_child(work):
    """Run `work` in a fork that kills itself at its end, and wait for it."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("content", [b"new", "new", lambda file: file.write(b"new")])
def test_a_file_is_written_whole(tmp_path, content):
    (tmp_path / "a").write_text("old")
    write_file(tmp_path / "a", content)
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == ["a"]


def test_an_error_leaves_the_old_content(tmp_path):
    (tmp_path / "a").write_text("old")

    def fails(file):
        file.write(b"half")
        raise RuntimeError("x")

    with pytest.raises(RuntimeError):
        write_file(tmp_path / "a", fails)
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"x")
        with whole_folder(tmp_path / "f") as folder:
            os.close(os.open(folder / "private", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "f" / "private").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o750


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    write_file(tmp_path / "a", b"new")
    assert (tmp_path / "precious").read_text() == "keep" and not (tmp_path / "a").is_symlink()


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "disk" / "final").mkdir(parents=True)
    (tmp_path / "final").symlink_to(tmp_path / "disk" / "final")
    with whole_folder(tmp_path / "final") as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "final").is_symlink() and names(tmp_path / "disk") == ["final"]
    assert (tmp_path / "disk" / "final" / "x").read_text() == "new"


def test_there_is_always_a_whole_folder(tmp_path):
    """Somebody who looks all the time, while the folder is replaced a hundred times, always finds a whole one."""
    path, gone, ended = tmp_path / "final", [], threading.Event()

    def fill(text):
        with whole_folder(path) as folder:
            (folder / "a").write_text(text)
            (folder / "b").write_text(text)

    def look():
        while not ended.is_set():
            try:
                handle = os.open(path, os.O_RDONLY)
            except OSError:
                gone.append(time.monotonic())
                continue
            os.close(handle)

    fill("0")
    watcher = threading.Thread(target=look)
    watcher.start()
    for i in range(100):
        fill(str(i))
    ended.set()
    watcher.join()
    assert not gone and names(tmp_path) == ["final"] and (path / "b").read_text() == "99"


def test_without_an_exchange_the_folder_is_replaced_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for text in ("old", "new"):
        with whole_folder(tmp_path / "final") as folder:
            (folder / "a").write_text(text)
    assert (tmp_path / "final" / "a").read_text() == "new" and names(tmp_path) == ["final"]


def test_a_kill_is_swept_and_a_living_writer_is_not(tmp_path):
    def dies():
        with whole_folder(tmp_path / "f") as folder:
            (folder / "x").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    in_a_child(dies)
    in_a_child(lambda: write_file(tmp_path / "a", lambda file: os.kill(os.getpid(), signal.SIGKILL)))
    assert len(names(tmp_path)) == 2 and all(name.endswith(UNFINISHED) for name in names(tmp_path))

    def content(file):
        sweep(tmp_path)
        assert len(names(tmp_path)) == 1, "the one that is being written"
        file.write(b"whole")

    write_file(tmp_path / "a", content)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize("writer", ["file", "folder"])
def test_a_full_disk_names_the_file(tmp_path, writer):
    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"disk is full: .*/out could not be written.*run the same command again"):
        if writer == "file":
            write_file(tmp_path / "out", lambda file: full())
        else:
            with whole_folder(tmp_path / "out"):
                full()
    assert names(tmp_path) == []


def test_a_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(UserError, match="choose another place"):
        write_file(tmp_path / "a" / "b", b"x")


def test_json_refuses_what_it_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


def test_what_a_killed_writer_of_a_folder_left_goes_when_it_is_written_again(tmp_path):
    """Beside the folder, by its name alone: what others write there is not ours."""
    for name in (".out[1].0123abcd", ".other.0123abcd"):
        (tmp_path / f"{name}{UNFINISHED}").mkdir()
    with whole_folder(tmp_path / "out[1]") as home, whole_folder(tmp_path / "out[1]"):
        (home / "a").write_text("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".other.0123abcd{UNFINISHED}", "out[1]"]
    assert (tmp_path / "out[1]" / "a").read_text() == "a"
