"""The users world's builder: who meets which pictures, and that labels are their person's."""

import io

from PIL import Image
from users_builder import make_pairs
from users_builder.measure_world import measure_pairs

from diffpo.worlds.users.people import people


def test_everybody_meets_a_prompt_once_and_two_different_pictures_of_it():
    jobs = make_pairs.plan_jobs(12, 0)
    meetings = make_pairs.plan_meetings(jobs, 5, 0)
    assert len(meetings) == 40 * 10
    for person in people().values():
        own = [meeting for meeting in meetings if meeting.person == person]
        assert len({meeting.prompt for meeting in own}) == 10
        assert [meeting.first.model for meeting in own].count("base") == 5
    assert all(m.first != m.second and m.first.model == m.second.model for m in meetings)
    assert make_pairs.plan_meetings(jobs, 5, 0) == meetings != make_pairs.plan_meetings(jobs, 5, 1)


def test_a_table_holds_what_people_chose(tmp_path):
    jobs = {key: some for key, some in make_pairs.plan_jobs(4, 0).items() if key[1] == "rendered"}
    meetings = make_pairs.plan_meetings({**jobs, **{(p, "base"): some for (p, _), some in jobs.items()}}, 2, 0)[:32]
    jpegs = make_pairs.draw_scenes([job for some in jobs.values() for job in some])
    rows = make_pairs.label(meetings, jpegs, 0)
    assert measure_pairs(rows)["rendered"]["agreement"] > 0.6
    make_pairs.write_table(rows, tmp_path / "pairs.parquet")
    from pyarrow import parquet

    read = parquet.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [row["user_id"] for row in read] == [meeting.person.name for meeting in meetings]
    for row, meeting in zip(read, meetings, strict=True):
        assert {row["chosen_seed"], row["rejected_seed"]} == {meeting.first.seed, meeting.second.seed}
        assert Image.open(io.BytesIO(row["chosen"]["bytes"])).size == (64, 64)
