"""Pictures of a prediction: the class colours laid over the image, and a video of them."""

import contextlib
import functools
import os
import tempfile

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what does not decode is reported in one line
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")  # a video may not name web addresses

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from utils.errors import UserError  # noqa: E402
from utils.files import replacing  # noqa: E402

_CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"))


def overlay(image, classes, palette, alpha, clear=None):
    """``image`` (H, W, 3) uint8 BGR with the colours of ``classes`` (H, W) uint8 over it, by the share ``alpha``.

    ``palette`` holds an RGB triple a class; pixels of the class ``clear`` stay as they are.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = np.array(palette, np.uint8)[:, ::-1]
    blended = cv2.addWeighted(colors[classes], alpha, image, 1 - alpha, 0)
    if clear is not None:
        blended[classes == clear] = image[classes == clear]
    return blended


def frames(path, largest):
    """(the number of frames that the video at ``path`` claims to have or 0, their rate, an iterator of the frames).

    Frames are (H, W, 3) uint8 BGR. Raises ``UserError`` when it is missing, no video, or has more than ``largest``
    pixels a frame.
    """
    if not os.path.isfile(path):
        raise UserError(f"the video {path} is missing")
    capture = cv2.VideoCapture(str(path))
    width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if not capture.isOpened():
        raise UserError(f"the video {path} does not decode: it is no video, or OpenCV lacks its codec")
    if width * height > largest:
        raise UserError(f"the video {path} has {width} x {height} pixels a frame, more than the limit of {largest}; "
                        "raise it with --max-pixels if the file is what it should be")
    count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    return int(count) if 0 < count < 1e9 else 0, rate if 0 < rate <= 1000 else 25.0, _read(capture)


def _read(capture):
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield frame
    finally:
        capture.release()


@contextlib.contextmanager
def video(path, rate):
    """A function that appends a frame (H, W, 3) uint8 BGR to the video ``path`` with ``rate`` frames a second.

    ``path`` gets the suffix .mp4 (MPEG-4), or .avi (Motion JPEG) where OpenCV has no such encoder. The video takes its
    place when the context ends without an error, and only if it has a frame. Raises ``UserError``.
    """
    codec, suffix = next(kind for kind in _CODECS if _encodes(*kind))
    path = path.with_name(path.name + suffix)
    with contextlib.ExitStack() as stack:
        writer = []

        def add(frame):
            frame = cv2.copyMakeBorder(frame, 0, frame.shape[0] % 2, 0, frame.shape[1] % 2, cv2.BORDER_REPLICATE)
            if not writer:
                temporary = stack.enter_context(replacing(path))
                writer.append(cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*codec), rate, frame.shape[1::-1]))
                stack.callback(writer[0].release)  # before the file is renamed
            writer[0].write(frame)

        yield add
        if writer and not writer[0].isOpened():
            raise UserError(f"{path} cannot be written by OpenCV's encoder {codec}; check the disk and the folder")


@functools.cache
def _encodes(codec, suffix):
    """Whether OpenCV can write a video with this codec here; the last of the choices it always can."""
    if (codec, suffix) == _CODECS[-1]:
        return True
    with tempfile.TemporaryDirectory() as folder:
        writer = cv2.VideoWriter(os.path.join(folder, f"probe{suffix}"), cv2.VideoWriter_fourcc(*codec), 25, (64, 64))
        usable = writer.isOpened()
        writer.release()
    return usable
