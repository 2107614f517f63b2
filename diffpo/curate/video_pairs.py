"""The pair table of clips that were made two by two; see `generation.video_pairs`.

    OUT/metadata.jsonl           prompt, chosen, rejected, their seeds, eta, clip (the real one), preference
    OUT/train.provenance.json    how it was made

Nobody has judged the pairs yet: each has the preference 0.5, so that training takes them for ties and leaves them out.
`diffpo data segments` labels them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpo.curate.write import record_of
from diffpo.disk.files import write_file, write_json

TABLE = "metadata.jsonl"
ADDED = (TABLE, record_of(Path(), "train").name)
"""What is added to the media folder."""


def write_video_pairs(folder: Path, rows: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> None:
    """Write the table of a media folder's pairs; each row has what `metadata.jsonl` says, but for the preference."""
    lines = [json.dumps(dict(row) | {"preference": 0.5}, ensure_ascii=False) + "\n" for row in rows]
    record = {"recipe": {"made by": "diffpo data video-pairs", **recipe}, "rows": len(rows)}
    write_json(record_of(folder, "train"), record)
    write_file(folder / TABLE, "".join(lines))
