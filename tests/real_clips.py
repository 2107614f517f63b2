"""Real video files, made with PyAV: of any rate, size, codec, colours, turned, with sound, cut off."""

import io
import struct
from fractions import Fraction

import av
import numpy as np

TURNS = {
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),  # what a telephone held upright writes: turn to the right by 90 degrees
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
}


def ramp(count: int, width: int = 32, height: int = 24) -> list[np.ndarray]:
    """Smooth frames `[h w 3]`, each brighter than the one before; the corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    return [
        np.stack([20 + 8 * i + 0 * x, 60 + 100 * x // width, 60 + 100 * y // height], axis=2).astype(np.uint8)
        for i in range(count)
    ]


def number_of(frame) -> int:
    """Which frame of a `ramp` this is."""
    return round((float(np.asarray(frame)[..., 0].mean()) - 20) / 8)


def video(
    frames,
    fps=8.0,
    *,
    times=None,
    kind="mp4",
    codec="libx264",
    pixels="yuv420p",
    options=None,
    turned=0,
    sound=False,
    matrix=None,
    full=False,
    ratio=None,
    base=Fraction(1, 1000),
) -> bytes:
    """Write frames `[h w 3]` as a video file; `times` in seconds make its rate vary."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        context = stream.codec_context
        context.thread_count = 1
        if times is not None:
            context.time_base = base
        if matrix is not None:
            context.colorspace = matrix
        if full:
            context.color_range = 2
        if ratio is not None:
            context.sample_aspect_ratio = ratio
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number, pixels_of in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_of, format="rgb24")
            how = {} if matrix is None else {"dst_colorspace": matrix, "dst_color_range": 2 if full else 1}
            frame = frame.reformat(format=pixels, **how)
            if times is not None:
                frame.time_base, frame.pts = base, round(times[number] / base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            tone = (np.sin(np.arange(16000) / 9) * 9000).astype(np.int16)[None]
            sound_frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            sound_frame.sample_rate = 16000
            for resampled in av.AudioResampler("fltp", "mono", 16000, frame_size=1024).resample(sound_frame):
                container.mux(audio.encode(resampled))
            container.mux(audio.encode())
    return turn(file.getvalue(), turned) if turned else file.getvalue()


def turn(data: bytes, how) -> bytes:
    """Write a display matrix into the head of an mp4's first track."""
    a, b, c, d = TURNS[how]
    at = data.index(b"tkhd") + 4
    at += 40 if data[at] == 0 else 52
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return data[:at] + matrix + data[at + 36 :]


def sound_alone() -> bytes:
    """An mp4 without pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for resampled in av.AudioResampler("fltp", "mono", 16000, frame_size=1024).resample(frame):
            container.mux(audio.encode(resampled))
        container.mux(audio.encode())
    return file.getvalue()
