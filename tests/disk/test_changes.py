"""What is said of a folder that was made in another way."""

from diffpo.disk.changes import LISTED, name_changes


def test_differences_are_named_by_their_keys():
    earlier = {"steps": 2, "how": {"pairs": 4, "seed": 0}, "gone": True}
    now = {"steps": 3, "how": {"pairs": 1, "seed": 0, "unseen": None}}
    assert name_changes(earlier, now).split("; ") == [
        "gone was True, and this version does not note it",
        "how.pairs was 4, is now 1",
        "how.unseen is now None, and an earlier version of diffpo did not note it",
        "steps was 2, is now 3",
    ]
    assert name_changes(earlier, earlier) == ""
    many = name_changes({}, {str(i): i for i in range(LISTED + 2)})
    assert many.endswith("; and 2 more") and many.count("did not note it") == LISTED
    assert name_changes({"a": 0}, {"a": "x" * 1000}).endswith("xxx...")
