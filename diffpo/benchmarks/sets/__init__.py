"""What sets of images tell that no single one does: distance to other images, diversity, signs of over-optimisation.

features    numbers of each image: CLIP's, Inception's, and its looks (saturation, contrast, size as JPEG)
distances   FID and KID of two sets of features
run         a baseline, others and perhaps a reference -> `SetReport`
"""

from diffpo.benchmarks.sets.features import ClipFeatures, Inception

FEATURES: dict[str, type[ClipFeatures] | type[Inception]] = {"clip": ClipFeatures, "inception": Inception}
