"""What sets of images tell that no single one does: distance to other images, diversity, signs of over-optimisation.

features    numbers of each image: CLIP's, Inception's, and its looks (saturation, contrast, size as JPEG)
distances   FID and KID of two sets of features
run         a baseline, others and perhaps a reference -> `SetReport`
command     `diffpo set-metrics`: the tables and the JSON file
"""

from diffpo.benchmarks.sets.distances import frechet_distance, kernel_distance
from diffpo.benchmarks.sets.features import ClipFeatures, Features, Inception, Looks, folder_features
from diffpo.benchmarks.sets.run import Distance, Drift, ImageSet, SetReport, compare_sets, mean_pair_distance

__all__ = [
    "ClipFeatures",
    "Distance",
    "Drift",
    "Features",
    "ImageSet",
    "Inception",
    "Looks",
    "SetReport",
    "compare_sets",
    "folder_features",
    "frechet_distance",
    "kernel_distance",
    "mean_pair_distance",
]
