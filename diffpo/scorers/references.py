"""How alike images are to pictures of their subject: two measures of DreamBooth (arXiv:2208.12242) and DreamBench.

    score = mean over the reference pictures of cos(f(image), f(reference))

    clip-i    image features of CLIP ViT-B/16, of any other CLIP, or of an ALIGN
    dino      class token of DINO ViT-S/16, or of any other ViT

The third measure, CLIP-T, is the scorer `clip` with the same network. A picture that is itself one of the references is
compared with the other ones: with itself it would be perfectly alike.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.core.block import Place
from diffpo.disk.rows import digest
from diffpo.disk.tables import files_below
from diffpo.errors import UserError
from diffpo.media.frames import PICTURES, BrokenImage, decode, find_pictures, name_others, read_bytes
from diffpo.scorers.base import plain
from diffpo.scorers.clip import Library, Preprocessing, find_clip
from diffpo.scorers.towers import TowerScorer, TowerSpec, pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

CLIP_B16, DINO_S16 = "openai/clip-vit-base-patch16", "facebook/dino-vits16"


@dataclass(frozen=True, kw_only=True)
class ReferenceScorer(TowerScorer, ABC):
    """The mean cosine between an image and the reference pictures of its subject."""

    scale = "mean of cosines"

    references: Place
    """Folder of pictures of the subject. With `subjects`: a folder that holds one such folder for each subject, which
    is called like it."""
    subjects: Place | None = None
    """Of several subjects: a table of prompts with the column `subject`, which says whom an image shows by its prompt.
    None: all images show the one subject of `references`."""

    @property
    def _found(self) -> dict[str, Any]:
        found = super()._found
        if self.subjects is not None:
            found = found | {"subjects": digest(repr(sorted(self._subject_of.items()))).hex()}
        each = (digest(subject, *map(read_bytes, find_references(home))) for subject, home in self._folders.items())
        return found | {"references": digest(*each).hex()}

    @cached_property
    def _subject_of(self) -> dict[str, str]:
        """Who is shown, by prompt; empty where there is one subject."""
        from diffpo.media.prompt_files import read_prompt_file

        if self.subjects is None:
            return {}
        records = read_prompt_file(Path(self.subjects).expanduser())
        told = {record.prompt: str(record.detail.get("subject") or "") for record in records}
        if nobody := [prompt for prompt, subject in told.items() if not subject]:
            raise UserError(f"{self.subjects} names no subject of {nobody[0]!r}: each row needs a column `subject`.")
        return told

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """The folder of each subject's pictures; that of an only subject is called by no name."""
        home = Path(self.references).expanduser()
        if self.subjects is None:
            return {"": home}
        return {subject: home / subject for subject in sorted(set(self._subject_of.values()))}

    @cached_property
    def _seen(self) -> dict[str, tuple[list[str], Tensor]]:
        """By subject: the pixels of each reference picture, hashed, and its features `[references d]`, of length 1."""
        from torch.nn import functional

        seen = {}
        for subject, folder in self._folders.items():
            images = read_references(folder)
            features = self.tower.image_features(images, self.batch)
            seen[subject] = [pixels_of(plain(image)) for image in images], functional.normalize(features, dim=-1)
        return seen

    def _judge(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        import torch
        from torch.nn import functional

        if unknown := [prompt for prompt in prompts if self.subjects is not None and prompt not in self._subject_of]:
            raise UserError(f"{self.name}: {self.subjects} has no row for the prompt {unknown[0]!r}.")
        features = functional.normalize(self.tower.image_features(images, self.batch), dim=-1)
        scores = []
        for image, own, prompt in zip(images, features, prompts, strict=True):
            pixels, references = self._seen[self._subject_of.get(prompt, "")]
            itself = pixels_of(plain(image))
            others = torch.tensor([one != itself for one in pixels])
            scores.append((references[others] if others.any() else references) @ own)
        return torch.stack([each.mean() for each in scores])


@dataclass(frozen=True, kw_only=True)
class ClipI(ReferenceScorer):
    """CLIP-I: how alike to the references an image is to a CLIP."""

    name = "clip-i"
    about = "How alike the image is to reference pictures of its subject, by a CLIP: subject fidelity."
    origin = f"Hub {CLIP_B16}"

    model: str = CLIP_B16
    """As for the scorer `clip`, of which this is the counterpart: a CLIP or an ALIGN."""
    architecture: str | None = None
    """Of a single file for open_clip: a name that it knows, or a JSON file like its own."""
    library: Library = "auto"
    """Who reads it; `auto` is open_clip where its configuration is there."""
    preprocessing: Preprocessing = "auto"
    """As for the scorer `clip`."""

    @cached_property
    def _spec(self) -> TowerSpec:
        return find_clip(self.model, self.architecture, self.library, self.preprocessing)


@dataclass(frozen=True, kw_only=True)
class Dino(ReferenceScorer):
    """DINO: how alike to the references an image is to a network that no captions have taught."""

    name = "dino"
    about = "How alike the image is to reference pictures of its subject, by DINO: stricter than a CLIP."
    origin = f"Hub {DINO_S16}"

    path: str = DINO_S16
    """A ViT of transformers (DINO, DINOv2, others), whose class token counts: Hub id or local folder."""

    @cached_property
    def _spec(self) -> TowerSpec:
        from diffpo.scorers.transformers_tower import find_vit

        return find_vit(self.path)


def find_references(folder: Path) -> list[Path]:
    """List the pictures of a subject, which lie in a folder, not below it; sorted by name.

    Raises:
        UserError: There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give one that holds reference pictures of the subject.")
    below = files_below(folder, PICTURES)
    found = [path for path in below if path.parent == folder]
    if not found:
        name_others(folder)
        deeper = f" It has pictures in {below[0].parent.name}/: give that folder." if below else ""
        clips = " Clips are no reference pictures." if not below and find_pictures(folder) else ""
        raise UserError(f"{folder} holds no reference picture of the subject.{deeper}{clips}")
    return found


def read_references(folder: Path) -> list[Image]:
    """Decode the pictures of a subject; see `find_references`.

    Raises:
        UserError: As there, or one of them is broken.
    """
    return [*map(read_reference, find_references(folder))]


def read_reference(path: Path) -> Image:
    """Decode one picture of a subject; a `UserError` where it is broken."""
    try:
        return decode(path)
    except BrokenImage as error:
        raise UserError(f"{path} is no readable picture of the subject: {error}. Mend it, or remove it.") from error
