"""What is made of predictions: labels, overlays, confidences, videos, and a panel of images beside them."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from data.masks import write_palette_png
from models.description import Description
from utils.errors import UserError
from utils.files import replacing, write_bytes

FOLDERS = ("labels", "overlays", "confidence")
_LONGEST_JPEG = 65500  # pixels, the format's own limit
_SHOWN, _INCHES = 320, 1.75  # in the panel: longest side of a picture in pixels, width of a column


@dataclass
class Output:
    """Writes what is made of pictures into ``folder``.

    ``values`` (C,) uint8 are what stands in a label for each class. ``suffix`` is that of overlays (None: none), which
    show the colours by the share ``alpha``. The first ``rows`` pictures are shown in the panel.
    """

    folder: Path
    description: Description
    values: np.ndarray
    suffix: str | None
    alpha: float
    confidence: bool
    rows: int
    shown: list = field(default_factory=list)  # of the panel: title -> picture, a row each

    def write(self, name, image, decision, film=False):
        """Write what is made of ``image`` (H, W, 3) uint8 BGR; returns (overlay or None, its row of the panel).

        The overlay of a frame of a ``film`` is not written.
        """
        classes, confidence = (part.cpu().numpy() for part in decision)
        write_palette_png(self.folder / "labels" / f"{name}.png", self.values[classes],
                          dict(zip(self.values.tolist(), self.description.palette)))
        grey = np.rint(255 * confidence).clip(max=255).astype(np.uint8)
        if self.confidence:
            path = self.folder / "confidence" / f"{name}.png"
            write_bytes(path, cv2.imencode(".png", grey)[1].tobytes(), durable=False)
        show, laid_over = len(self.shown) < self.rows, None
        if self.suffix or show:
            laid_over = overlay(image, classes, self.description.palette, self.alpha, self.description.background)
        if self.suffix and not film:
            suffix = self.suffix if max(classes.shape) <= _LONGEST_JPEG else ".png"
            path = self.folder / "overlays" / f"{name}{suffix}"
            write_bytes(path, cv2.imencode(suffix, laid_over)[1].tobytes(), durable=False)
        return laid_over, self._row(image, classes, laid_over, grey) if show else None

    def _row(self, image, classes, laid_over, grey):
        colors = np.array(self.description.palette, np.uint8)
        row = {"image": image[..., ::-1], "prediction": colors[classes], "overlay": laid_over[..., ::-1]}
        if self.confidence:
            row["confidence"] = np.repeat(grey[..., None], 3, axis=-1)
        share = min(1, _SHOWN / max(classes.shape))
        size = tuple(max(1, round(share * side)) for side in classes.shape[::-1])
        return {title: cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_NEAREST)
                for title, picture in row.items()}

    def write_panel(self):
        """Write the panel of the rows in ``shown``, if there are any."""
        if self.shown:
            columns = {title: [row[title] for row in self.shown] for title in self.shown[0]}
            with replacing(self.folder / "panel.png") as temporary:
                write_panel(temporary, columns, self.description.class_names, self.description.palette)


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


def write_panel(path, columns, names, colors):
    """Draw ``columns``, {title: pictures (H, W, 3) uint8 RGB, a row each}, side by side, and a legend below them.

    Pictures are ``_INCHES`` wide and as high as they are; only those that are very flat or tall leave a gap.
    ``names`` and ``colors`` (RGB triples) are the legend's.
    """
    sizes = [picture.shape[:2] for picture in next(iter(columns.values()))]
    heights = [_INCHES * min(max(rows / across, 1 / 8), 3) for rows, across in sizes]
    whole = _INCHES * len(columns)
    figure = Figure((whole, sum(heights)))
    axes = figure.subplots(len(heights), len(columns), squeeze=False, gridspec_kw={
        "height_ratios": heights, "wspace": 0.02, "hspace": 0.02, "left": 0, "right": 1, "bottom": 0, "top": 1})
    for column, (title, pictures) in zip(axes.T, columns.items()):
        column[0].set_title(title, fontsize=7)
        for place, picture in zip(column, pictures):
            place.imshow(picture, interpolation="nearest")
            place.axis("off")
    beside = max(1, int(whole / (0.55 + 0.07 * max(map(len, names)))))  # as many as fit
    patches = [Patch(facecolor=np.array(color) / 255, edgecolor="grey", label=name)
               for name, color in zip(names, colors)]
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(beside, len(names)),
                  fontsize=7, frameon=False)
    try:
        figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.06)  # tight: whatever the legend needs
    except (OSError, ValueError) as error:
        raise UserError(f"the panel {path} cannot be written: {error}") from error


@contextlib.contextmanager
def film(path, rate, first):
    """A function that appends a frame (H, W, 3) uint8 BGR, as large as ``first``, to the MPEG-4 video ``path``.

    ``rate`` is in frames a second. The video takes its place when the context ends without an error. Raises
    ``UserError``.
    """
    odd = [side % 2 for side in first.shape[:2]]  # the format wants even sides
    with replacing(path) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate,
                                 (first.shape[1] + odd[1], first.shape[0] + odd[0]))
        if not writer.isOpened():
            raise UserError(f"{path} cannot be written: this OpenCV has no MPEG-4 encoder (that of pip has), or the "
                            "disk is full; give --no-overlays for labels alone")
        yield lambda frame: writer.write(cv2.copyMakeBorder(frame, 0, odd[0], 0, odd[1], cv2.BORDER_REPLICATE))
        writer.release()
