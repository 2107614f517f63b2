"""Video files (mp4, m4v, mov, mkv, webm), read and written with PyAV.

A file is read twice: first the times of its frames, from its packets, then the frames that are asked for, one at a
time. So memory grows with the frames that are kept. Sound is not read. Rotation and mirroring (the display matrix) and
pixels that are not square are applied; colours are converted by the matrix and range that the file names. Where it
names no matrix, it is BT.709 from 720 lines on and BT.601 below, as players have it; HDR is not mapped to other tones.

Only containers known by their first bytes are opened, and common codecs: other formats name files and addresses that
would be opened too.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from diffpo.media.bounds import LARGEST_DECODED, MOST_FRAMES, BrokenImage, check_size, in_turn
from diffpo.media.footage import Footage, Timeline
from diffpo.media.pictures import to_rgb

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from PIL.Image import Image

CODECS = frozenset(
    {"h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "mjpeg", "prores", "ffv1", "png"}
)
"""What is decoded, by the names of FFmpeg."""
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""One of these stands at the fourth byte of an mp4 or mov."""
PICTURES = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix")
"""Brands of pictures that come in the same boxes."""
MATROSKA = b"\x1a\x45\xdf\xa3"
"""The first bytes of an mkv or webm."""
SAID = 0.9
"""A file that holds less than this share of the seconds that it says was cut off."""
HD = 720
"""Lines from which on an untagged video is taken for BT.709."""
EXACT = 128
"""Clips up to this width and height are written without loss: a scorer sees the very pixels."""
QUALITY = "12"
"""The constant rate factor of larger ones: what is lost cannot be seen."""

PREVIEW_RATE = "1500k"
"""Bits per second of a preview."""


def container_of(head: bytes) -> str | None:
    """Name the container of a video by its first 12 bytes, as FFmpeg calls it; None if it is none."""
    if head[4:8] in BOXES and head[8:12] not in PICTURES:
        return "mov"
    return "matroska" if head[:4] == MATROSKA else None


class Video(Footage):
    """A video file."""

    def __init__(self, file: BinaryIO, container: str):
        """Read the file's head; `container` is what `container_of` says."""
        self._file, self._kind, self._opened = file, container, []
        stream = self._open()
        context = stream.codec_context
        check_size(context.width, context.height)
        self._pixels = context.width * context.height

    def _open(self) -> Any:
        """Open the file from its start, and return its video stream."""
        import av

        self.close()
        self._file.seek(0)
        container = av.open(self._file, format=self._kind, metadata_errors="ignore")
        self._opened.append(container)
        streams = [stream for stream in container.streams.video if not stream.disposition & _ATTACHED]
        if not streams:
            raise BrokenImage("it has no pictures, only sound" if container.streams.audio else "it has no pictures")
        stream = max(streams, key=lambda stream: (stream.disposition & 1, -stream.index))  # 1: the default one
        context = stream.codec_context
        if context is None or context.name not in CODECS:
            codec = "unknown" if context is None else context.name
            raise BrokenImage(f"its codec is {codec}; read are {', '.join(sorted(CODECS))}")
        context.thread_count = 1  # several files are decoded side by side
        return stream

    @cached_property
    def _times(self) -> tuple[list[int], float, float]:
        """The times of the frames, ascending, in units of so many seconds; and the seconds in all."""
        stream = self._open()
        times, last = [], 0
        for packet in stream.container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                raise BrokenImage("it does not say when its frames are shown")
            times.append(packet.pts)
            last = max(last, packet.pts + (packet.duration or 0))
            if len(times) > MOST_FRAMES:
                raise BrokenImage(f"too long: more than {MOST_FRAMES} frames")
        if not times:
            raise BrokenImage("it has no frame")
        times.sort()
        base, first = float(stream.time_base), times[0]
        mean = (times[-1] - first) / max(1, len(times) - 1)
        end = (max(last, times[-1] + mean if last <= times[-1] else last) - first) * base
        self._check_whole(stream, len(times), end)
        return times, base, end

    @staticmethod
    def _check_whole(stream: Any, found: int, end: float) -> None:
        """Refuse a file that says more frames or seconds than it holds."""
        if stream.frames > found:
            raise BrokenImage(f"it is cut off: of {stream.frames} frames it holds {found}")
        said = stream.duration and float(stream.duration * stream.time_base)
        if not said and len(stream.container.streams) == 1 and stream.container.duration:
            said = stream.container.duration / 1e6
        if said and end < SAID * said:
            raise BrokenImage(f"it is cut off: of {said:.1f} s it holds {end:.1f}")

    def _count(self) -> int:
        return len(self._times[0])

    def _timeline(self) -> Timeline:
        times, base, end = self._times
        return Timeline(tuple((time - times[0]) * base for time in times), end if len(times) > 1 else None)

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def _decode(self, numbers: Sequence[int]) -> Iterator[Image]:
        from av.video.reformatter import VideoReformatter
        from PIL.Image import Transpose

        times = self._times[0]
        if (numbers[-1] + 1) * self._pixels > LARGEST_DECODED:
            raise BrokenImage(f"too long: {numbers[-1] + 1} frames of {self._pixels / 1e6:.1f} million pixels")
        stream = self._open()
        decoded, ratio = stream.container.decode(stream), stream.sample_aspect_ratio
        converter = VideoReformatter()  # one for all frames: each would keep tables of its own
        shown, following, turn = None, next(decoded, None), None
        for number in numbers:
            while following is not None and following.pts <= times[number]:
                shown, following = following, next(decoded, None)
            if shown is None or (following is None and shown.pts < times[number]):
                raise BrokenImage(f"it is cut off or damaged: frame {number} cannot be decoded")
            if shown.is_corrupt:
                raise BrokenImage(f"it is damaged at frame {number}")
            with in_turn(self._pixels):
                turn = _turn(shown) if turn is None else turn
                image = _as_shown(shown, ratio, converter)
                image = image.transpose(Transpose[turn]) if turn else image
            yield image


_ATTACHED = 0x400  # FFmpeg's mark of a cover picture among the streams
_TURNS = {
    (0, 1, -1, 0): "ROTATE_270",  # Pillow turns to the left
    (-1, 0, 0, -1): "ROTATE_180",
    (0, -1, 1, 0): "ROTATE_90",
    (-1, 0, 0, 1): "FLIP_LEFT_RIGHT",
    (1, 0, 0, -1): "FLIP_TOP_BOTTOM",
    (0, 1, 1, 0): "TRANSPOSE",
    (0, -1, -1, 0): "TRANSVERSE",
}
"""What a display matrix (a, b, c, d), of which x' = a x + c y and y' = b x + d y, does to a picture."""


def _as_shown(frame: VideoFrame, ratio: Fraction | None, converter: VideoReformatter) -> Image:
    """Convert a frame to RGB and square its pixels."""
    from av.video.reformatter import ColorRange, Colorspace, Interpolation
    from PIL import Image

    check_size(frame.width, frame.height)
    components = frame.format.components
    kind = "rgba" if any(component.is_alpha for component in components) else "rgb24"
    how: dict[str, Any] = {}
    if not frame.format.is_rgb and len(components) > 1:
        standard = Colorspace.ITU709 if frame.height >= HD else Colorspace.ITU601
        how["src_colorspace"] = _MATRICES.get(frame.colorspace, standard)
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        how["src_color_range"] = ColorRange.JPEG if full else ColorRange.MPEG
        how["dst_color_range"] = ColorRange.JPEG
        fine = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        how["interpolation"] = fine | Interpolation.FULL_CHR_H_INP
    image = to_rgb(Image.fromarray(converter.reformat(frame, format=kind, **how).to_ndarray()))
    if ratio and ratio > 0 and ratio != 1:
        width = max(1, round(image.width * ratio))
        check_size(width, image.height)
        image = image.resize((width, image.height), Image.Resampling.LANCZOS)
    return image


_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""FFmpeg's numbers of colour matrices in files (AVCOL_SPC) -> in its scaler (SWS_CS)."""


def _turn(frame: VideoFrame) -> str:
    """How Pillow turns a frame as its display matrix says; empty where it stays.

    It is asked of the first frame alone: one that was asked refers to itself, and stays in memory for a while.
    """
    from av.sidedata.sidedata import Type

    with suppress(KeyError):
        numbers = struct.unpack("=9i", bytes(frame.side_data[Type.DISPLAYMATRIX]))
        return _TURNS.get(tuple((n > 0) - (n < 0) for n in (numbers[0], numbers[1], numbers[3], numbers[4])), "")
    return ""


def write_mp4(frames: Sequence[Image], fps: float) -> bytes:
    """Write frames as an mp4 (H.264), the same bytes each time.

    Clips up to `EXACT` pixels, and those of odd sides, are kept without loss, as RGB; others as browsers and players
    have them (4:2:0, BT.709).
    """
    width, height = frames[0].size
    if max(width, height) <= EXACT or width % 2 or height % 2:
        return _write(frames, fps, "libx264rgb", "rgb24", {"qp": "0"})
    return _write(frames, fps, "libx264", "yuv420p", {"crf": QUALITY})


def write_preview(frames: Sequence[Image], fps: float) -> bytes:
    """Write frames of even sides as a small mp4 that every browser plays, of at most `PREVIEW_RATE` in the mean."""
    rate = {"maxrate": PREVIEW_RATE, "bufsize": PREVIEW_RATE}
    return _write(frames, fps, "libx264", "yuv420p", {"crf": "18", **rate})


def _write(frames: Sequence[Image], fps: float, codec: str, pixels: str, options: dict[str, str]) -> bytes:
    import av
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace

    file, subsampled = io.BytesIO(), pixels == "yuv420p"
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.codec_context.thread_count = pixels, 1
        if subsampled:
            stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")
            if subsampled:
                how = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
                picture = picture.reformat(format=pixels, **how)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()
