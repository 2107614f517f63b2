"""GenEval (Ghosh et al., arXiv:2310.11513): does an image show the objects, counts, colours and positions asked for?

tasks       what is asked, what is seen, and the two kinds of eyes: `Detector`, `ColorNamer`
decide      from what is seen to right or wrong
detectors   Mask2Former and CLIP, for real images
shapes      the shapes world's verifier as both eyes
run         a media folder -> `geneval.json`
command     `diffpo geneval`: whose eyes, and the table
"""

from diffpo.benchmarks.geneval.decide import Decision, Rules, decide, keep, relative_position
from diffpo.benchmarks.geneval.run import GenEvalResult, Judged, read_geneval, read_tasks, run_geneval
from diffpo.benchmarks.geneval.tasks import COLORS, ColorNamer, Detector, Requirement, SeenObject, Task

__all__ = [
    "COLORS",
    "ColorNamer",
    "Decision",
    "Detector",
    "GenEvalResult",
    "Judged",
    "Requirement",
    "Rules",
    "SeenObject",
    "Task",
    "decide",
    "keep",
    "read_geneval",
    "read_tasks",
    "relative_position",
    "run_geneval",
]
