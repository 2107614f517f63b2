"""A detector and a namer of colours for real images.

GenEval detects with mmdet's Mask2Former (Swin-S, COCO instances). mmdet cannot be installed beside today's torch, so
this is the network of the original authors through transformers. Weights and resizing differ from mmdet's (384 x 384
instead of a longest side of 1333), so numbers come close to published ones but are not the same: name the detector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL.Image import Image

from diffpo.benchmarks.geneval.tasks import COLORS, SeenObject
from diffpo.core.block import Block
from diffpo.disk.ahead import groups
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.scorers.base import OnDevice
from diffpo.scorers.clip import Clip
from diffpo.scorers.loading import Kind, load_network, load_part
from diffpo.scorers.parts import find_model

HUB_DETECTOR = "facebook/mask2former-swin-small-coco-instance"
RENAMED = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
"""COCO's names, in both of their spellings, and what GenEval calls them."""
TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
_FORMAT, _KIND = "a Mask2Former of transformers", Kind("AutoModelForUniversalSegmentation", "mask2former")
_BACKGROUND = "#999"


@dataclass(frozen=True, kw_only=True)
class Mask2Former(OnDevice):
    """Mask2Former (Cheng et al., arXiv:2112.01527) for instances of COCO's 80 classes."""

    path: str = HUB_DETECTOR
    """Hub id or local folder."""

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "detector": "mask2former",
            "about": "transformers' Mask2Former in place of mmdet's, which GenEval uses",
            "weights": self._weights.identity,
            "preprocessing": "PIL",
        }

    def detect(self, images: Sequence[Image], threshold: float) -> list[list[SeenObject]]:
        import torch

        model, processor = self._loaded
        names, found = model.config.id2label, []
        for rows in groups(images, self.batch):
            inputs = processor(images=[image.convert("RGB") for image in rows], return_tensors="pt")
            with torch.no_grad():
                outputs = model(pixel_values=inputs["pixel_values"].to(model.device))
            how = {"target_sizes": [image.size[::-1] for image in rows], "return_binary_maps": True}
            for result in processor.post_process_instance_segmentation(outputs, threshold=threshold, **how):
                segments = result["segments_info"]
                masks = [mask.cpu().numpy().astype(bool) for mask in result["segmentation"]] if segments else []
                seen = zip(segments, masks, strict=True)
                found.append([_seen(names[segment["label_id"]], segment["score"], mask) for segment, mask in seen])
        return found

    @cached_property
    def _weights(self) -> Weights:
        return find_model(self.path, what=_FORMAT)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model and its image processor."""
        folder = self._weights.path
        model = load_network(folder, _KIND, _FORMAT, dtype="float32", device=self.device)
        processor = load_part(folder, "AutoImageProcessor", "its image processor")
        if not processor.size or "height" not in processor.size:  # else it pads, and masks would be stretched wrongly
            raise UserError(f"{folder}: its image processor must resize to a fixed height and width.")
        return model, processor


@dataclass(frozen=True, kw_only=True)
class ClipColors(Block):
    """Names a colour by CLIP: the object alone on gray, cut out, against three sentences per colour.

    The default is the network that GenEval uses. open_clip runs OpenAI's weights rightly only as `-quickgelu`.
    """

    clip: Clip = field(default_factory=lambda: Clip(model="ViT-L-14-quickgelu/openai"))
    """Which network."""

    @property
    def provenance(self) -> dict[str, Any]:
        record = {key: value for key, value in self.clip.provenance.items() if key not in ("scorer", "about", "scale")}
        return {"colors": "clip", **record, "templates": list(TEMPLATES), "background": _BACKGROUND}

    def name_colors(self, image: Image, objects: Sequence[SeenObject], label: str) -> list[str]:
        import torch

        if not objects:
            return []
        normalize = torch.nn.functional.normalize
        tower, batch = self.clip.tower, self.clip.batch
        texts = [template.format(color=color, label=label) for color in COLORS for template in TEMPLATES]
        with torch.no_grad():
            sentences = normalize(tower.prompt_features(texts, batch), dim=-1)
            colors = normalize(sentences.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1), dim=-1)
            crops = normalize(tower.image_features([cut_out(image, item) for item in objects], batch), dim=-1)
        return [COLORS[i] for i in (crops @ colors.T).argmax(1).tolist()]


def cut_out(image: Image, item: SeenObject) -> Image:
    """The object in its box, gray around it; the whole box where the detector gave no mask."""
    from PIL import Image as Images

    image = image.convert("RGB")
    if item.mask is not None:
        mask = Images.fromarray(item.mask.astype("uint8") * 255)
        image = Images.composite(image, Images.new("RGB", image.size, _BACKGROUND), mask)
    return image.crop(tuple(round(edge) for edge in item.box))


def _seen(label: str, confidence: float, mask: Any) -> SeenObject:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return SeenObject(RENAMED.get(label, label), confidence, box, mask)
