"""Scorers: images and prompts -> numbers. Adding one is a file and a line in `SCORERS`."""

from diffpo.scorers.aesthetic import AestheticV1, AestheticV2
from diffpo.scorers.base import Scorer as Scorer
from diffpo.scorers.clip import Clip
from diffpo.scorers.consistency import BackgroundConsistency, SubjectConsistency
from diffpo.scorers.frame_change import FrameChange
from diffpo.scorers.harmonic import LambdaHarmonic
from diffpo.scorers.hps import HPSv2, HPSv21
from diffpo.scorers.hpsv3 import HPSv3
from diffpo.scorers.imagereward import ImageReward
from diffpo.scorers.mps import MPS
from diffpo.scorers.optical_flow import DynamicDegree, Motion
from diffpo.scorers.pickscore import PickScore
from diffpo.scorers.references import ClipI, Dino
from diffpo.scorers.steadiness import Flicker, SmoothnessLinear
from diffpo.scorers.videoreward import VideoReward
from diffpo.scorers.visionreward import VisionReward
from diffpo.scorers.worlds import (
    MovingMotion,
    MovingVerifier,
    ShapesUtility,
    ShapesVerifier,
    SubjectFidelity,
    SubjectPrompt,
)

SCORERS: dict[str, type[Scorer]] = {
    "shapes": ShapesVerifier,
    "shapes-utility": ShapesUtility,
    "pickscore": PickScore,
    "hpsv2": HPSv2,
    "hpsv2.1": HPSv21,
    "clip": Clip,
    "aesthetic": AestheticV2,
    "aesthetic-v1": AestheticV1,
    "imagereward": ImageReward,
    "mps": MPS,
    "hpsv3": HPSv3,
    "frame-change": FrameChange,
    "moving": MovingVerifier,
    "moving-motion": MovingMotion,
    "subject": SubjectFidelity,
    "subject-prompt": SubjectPrompt,
    "flicker": Flicker,
    "smoothness-linear": SmoothnessLinear,
    "subject-consistency": SubjectConsistency,
    "background-consistency": BackgroundConsistency,
    "motion": Motion,
    "dynamic-degree": DynamicDegree,
    "videoreward": VideoReward,
    "visionreward": VisionReward,
    "clip-i": ClipI,
    "dino": Dino,
    "lambda-harmonic": LambdaHarmonic,
}
