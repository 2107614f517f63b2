"""Links, permissions and places that cannot be written: they work, or are refused before any work."""

from __future__ import annotations

import os
import stat

import pytest
from runs import World, assert_same, checkpoints, contents, weights

from diffpo.errors import UserError

RUN = {"train.steps": 2, "train.checkpoint_every": 1, "model.rank": 4}
NOWHERE = {"model.path": "./no-such-model"}
"""Would be refused, too, but later."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def plain(world):
    return contents(world.train("plain", RUN))


@pytest.mark.parametrize("linked", ["checkpoints", "samples", "final"])
def test_a_folder_of_a_run_may_be_a_link_to_another_disk(world, plain, tmp_path, linked):
    """Before the first start it is refused, like anything that is not the run's; in a run's own folder it stays."""
    (tmp_path / "disk").mkdir()
    name = f"linked-{linked}"
    run = world.train(name, RUN | {"train.steps": 1})
    if (run / linked).exists():
        (run / linked).rename(tmp_path / "disk" / linked)
    else:
        (tmp_path / "disk" / linked).mkdir()
    (run / linked).symlink_to(tmp_path / "disk" / linked)
    world.train(name, RUN)
    assert (run / linked).is_symlink()
    assert_same(plain, contents_through(run))
    world.train(name, RUN | {"method.beta": 7.0}, fresh=True)
    assert (run / linked).is_symlink()
    assert checkpoints(run) == ["step-000001", "step-000002"] and weights(run)


def contents_through(run):
    """`contents`, where a folder may be a link."""
    return contents(run)


PREPARED = {
    "a file where checkpoints go": ("checkpoints", lambda path: path.write_text("x"), "is a file"),
    "a link to nowhere": ("checkpoints", lambda path: path.symlink_to("nowhere"), "is a link to nowhere"),
    "a file where samples go": ("samples", lambda path: path.write_text("x"), "is a file"),
    "a file where the export goes": ("final", lambda path: path.write_text("x"), "is a file"),
}


@pytest.mark.parametrize(("name", "prepare", "told"), PREPARED.values(), ids=list(PREPARED))
@pytest.mark.parametrize("fresh", [False, True], ids=["", "fresh"])
def test_what_is_in_the_way_is_refused_before_any_work(world, tmp_path, name, prepare, told, fresh):
    run = tmp_path / "run"
    (tmp_path / "run").mkdir()
    prepare(run / name)
    with pytest.raises(UserError, match=told):
        world.train("x", NOWHERE | {"train.output": str(run)}, fresh=fresh)
    assert os.path.lexists(run / name)


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_file_where_the_run_should_lie(world, tmp_path, below):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot be written .*choose another place"):
        world.train("x", NOWHERE | {"train.output": str(tmp_path / below)})
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_a_disk_that_cannot_be_written(world):
    with pytest.raises(UserError, match="cannot be written"):
        world.train("x", NOWHERE | {"train.output": "/proc/self/run"})


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(world, mask):
    before = os.umask(mask)
    try:
        run = world.train(f"umask-{mask:o}", RUN)
    finally:
        os.umask(before)
    wrong = {
        str(path.relative_to(run)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in run.rglob("*")
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~mask
    }
    assert not wrong
