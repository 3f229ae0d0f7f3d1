"""Videos: frames in, overlays out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ov_recipro.errors import ImageError, ReciproError
from ov_recipro.images.preprocess import Image
from ov_recipro.limits import PIXELS

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


@dataclass(frozen=True)
class Video:
    """A video file: frames per second, and the number of frames that its header reports."""

    path: Path
    rate: float
    frames: int


def open_video(path: Path) -> Video:
    """Read a video file's header.

    Raises:
        ImageError: there is no such file, OpenCV can't read it as a video, or its frames have
            more pixels than `limits.PIXELS`.
    """
    capture = _capture(path)
    try:
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        PIXELS.check(width * int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), f"A frame of {path}")
    finally:
        capture.release()
    return Video(path, rate if 0 < rate < 1000 else 25.0, max(frames, 0))


def count_frames(path: Path) -> int:
    """Return the number of frames that a video's header reports, 1 where it can't be read."""
    return max(1, _frames_in(path))  # an error is reported when the video is explained


def _frames_in(path: Path) -> int:
    """Return the number of frames that a video's header reports, 0 where it can't be read."""
    try:
        return open_video(path).frames
    except ImageError:
        return 0


def read_frames(video: Video) -> Iterator[Image]:
    """Yield a video's frames, uint8 [H,W,3] BGR."""
    capture = _capture(video.path)
    try:
        while True:
            read, frame = capture.read()
            if not read:
                return
            yield np.asarray(frame, np.uint8)
    finally:
        capture.release()


def write_video(path: Path, frames: Iterable[Image], rate: float) -> int:
    """Write frames of one size as an MP4 file, under a temporary name until it is complete.

    Returns:
        The number of frames.

    Raises:
        ImageError: there are none.
        ReciproError: the file can't be written.
    """
    work = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    writer, count = None, 0
    try:
        for frame in frames:
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                codec = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(work), codec, rate, size)
                if not writer.isOpened():
                    raise ReciproError(f"{path} can't be written.")
            writer.write(frame)
            count += 1
        if writer is None:
            raise ImageError("The video has no frames that can be decoded.")
        writer.release()
        if _frames_in(work) != count:  # OpenCV's writer reports no errors
            raise ReciproError(f"{path} can't be written completely: is the disk full?")
        work.replace(path)
    except OSError as error:
        raise ReciproError(f"{path} can't be written: {error.strerror or error}.") from error
    finally:
        if writer is not None:
            writer.release()
        work.unlink(missing_ok=True)
    return count


def _capture(path: Path) -> cv2.VideoCapture:
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}.") from error
    if not is_file:
        raise ImageError(f"{path} is not a file.")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ImageError(f"{path}: not a video, or one that OpenCV can't read.")
    return capture
