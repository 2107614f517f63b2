"""GenEval (Ghosh et al., arXiv:2310.11513): does an image show the objects, counts, colours and positions asked for?

tasks       what is asked, what is seen, and the two kinds of eyes: `Detector`, `ColorNamer`
decide      from what is seen to right or wrong
detectors   Mask2Former and CLIP, for real images
shapes      the shapes world's verifier as both eyes
run         a media folder -> `geneval.json`
"""

from diffpo.benchmarks.geneval.detectors import Mask2Former
from diffpo.benchmarks.geneval.shapes import ShapesEyes

DETECTORS: dict[str, type[Mask2Former] | type[ShapesEyes]] = {"mask2former": Mask2Former, "shapes": ShapesEyes}
