"""The users world's builder: who meets which pictures, and that labels are their person's."""

import io
from itertools import combinations
from math import dist

from PIL import Image
from shapes_builder.make_pairs import from_jpeg
from users_builder import make_pairs
from users_builder.measure_world import measure_pairs

from diffpo.worlds.shapes.verify import see
from diffpo.worlds.users.people import people, place


def two_of_each(jobs):
    return {key: (some[0], some[3]) for key, some in jobs.items()}


def test_everybody_meets_a_prompt_once_and_two_different_pictures_of_it():
    asked = two_of_each(make_pairs.plan_jobs(12, 0))
    meetings = make_pairs.plan_meetings(asked, 12, 0)
    assert len(meetings) == 40 * 12
    for person in people().values():
        own = [meeting for meeting in meetings if meeting.person == person]
        assert len({meeting.prompt for meeting in own}) == 12
        assert [meeting.first.model for meeting in own].count("base") == 3
    assert all({m.first, m.second} == {*asked[m.prompt, m.first.model]} for m in meetings)
    assert make_pairs.plan_meetings(asked, 12, 0) == meetings != make_pairs.plan_meetings(asked, 12, 1)


def test_people_are_asked_about_the_two_pictures_that_differ_most():
    jobs = {key: some for key, some in make_pairs.plan_jobs(2, 0).items() if key[1] == "rendered"}
    jpegs = make_pairs.draw_scenes([job for some in jobs.values() for job in some])
    for key, two in make_pairs.most_different(jobs, jpegs).items():
        places = {job: place(see(from_jpeg(jpegs[job]))) for job in jobs[key]}
        apart = {pair: dist(*(places[job] for job in pair)) for pair in combinations(jobs[key], 2)}
        assert apart[two] == max(apart.values()) > min(apart.values())


def test_a_table_holds_what_people_chose(tmp_path):
    jobs = make_pairs.plan_jobs(4, 0)
    meetings = [m for m in make_pairs.plan_meetings(two_of_each(jobs), 4, 0) if m.first.model == "rendered"][:32]
    jpegs = make_pairs.draw_scenes([job for key, some in jobs.items() if key[1] == "rendered" for job in some])
    rows = make_pairs.label(meetings, jpegs, 0)
    assert measure_pairs(rows)["rendered"]["agreement"] > 0.6
    make_pairs.write_table(rows, tmp_path / "pairs.parquet")
    from pyarrow import parquet

    read = parquet.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [row["user_id"] for row in read] == [meeting.person.name for meeting in meetings]
    for row, meeting in zip(read, meetings, strict=True):
        assert {row["chosen_seed"], row["rejected_seed"]} == {meeting.first.seed, meeting.second.seed}
        assert Image.open(io.BytesIO(row["chosen"]["bytes"])).size == (64, 64)
