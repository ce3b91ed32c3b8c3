"""What TensorBoard shows beside curves: a few validation images, and the confusion matrix as a picture."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 160  # longest side of an image in the gallery, in pixels: the pictures of every validation are kept
_UNLABELLED = (224, 224, 192)  # VOC's cream
_LABELS = 70  # pixels for the class names beside a matrix


class LiveView:
    """What is shown while a training runs, on a ``utils.runs.Board``: every logged number, and these pictures.

    ``spec`` is the dataset's; ``shown`` are the positions in the validation list of the images that are shown.
    """

    def __init__(self, board, spec, shown):
        self._board, self._names = board, spec.class_names
        self._colors = np.full((256, 3), _UNLABELLED, np.uint8)
        self._colors[: spec.num_classes] = spec.palette
        self._shown, self._rows = frozenset(shown), {}

    def numbers(self, kind, values, step):
        """Show the dict ``values`` of metrics of one kind at ``step``."""
        self._board.add({f"{kind}/{name}": value for name, value in values.items()}, step)

    def see(self, index, image, label, prediction):
        """Keep a validation image that is to be shown, as ``dmt.evaluation.evaluate`` gives it.

        Image (H, W, 3) uint8 BGR tensor, maybe padded at its bottom and right; label and prediction (h, w) integer
        tensors.
        """
        if index not in self._shown:
            return
        height, width = label.shape
        scale = min(1, _SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(image[:height, :width].numpy()[..., ::-1], size, interpolation=cv2.INTER_AREA)
        maps = [cv2.resize(self._colors[part.cpu().numpy()], size, interpolation=cv2.INTER_NEAREST)
                for part in (label, prediction)]
        self._rows[index] = np.concatenate([picture, *maps], axis=1)

    def gather(self, processes):
        """Take over the images that the other ``processes`` have seen."""
        for rows in processes.gather(self._rows):
            self._rows.update(rows)

    def validated(self, matrix, iou, step):
        """Show the result of a validation: its confusion matrix (C, C), IoU (C,), and the images seen on the way."""
        self._board.add({f"iou/{name}": value for name, value in zip(self._names, iou)}, step)
        self._board.picture("validation/confusion", confusion_picture(matrix, self._names), step)
        if self._rows:
            self._board.picture("validation/image, truth, prediction", self._gallery(), step)

    def _gallery(self):
        width = max(row.shape[1] for row in self._rows.values())
        return np.concatenate([np.pad(row, ((0, 2), (0, width - row.shape[1]), (0, 0)), constant_values=255)
                               for _, row in sorted(self._rows.items())])


def spread(size, count):
    """``count`` positions at even distances in a list of ``size``; all of them when there are no more."""
    count = min(count, size)
    return [(2 * index + 1) * size // (2 * count) for index in range(count)]


def confusion_picture(matrix, class_names):
    """A confusion matrix (C, C; rows are true classes) as a picture, (H, W, 3) uint8 RGB.

    A cell is the darker the larger its share of the true class's pixels is; the share stands in it in percent.
    """
    matrix = np.asarray(matrix, np.float64)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cell = 28 if len(matrix) > 8 else 40
    side = _LABELS + cell * len(matrix)
    picture = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    for row, name in enumerate(class_names):
        place = _LABELS + cell * row + cell // 2
        name = name.encode("latin-1", "replace").decode("latin-1")[:13]  # the built-in font has no other letters
        draw.text((_LABELS - 4, place), name, "black", font, anchor="rm")
        upright = Image.new("RGB", (_LABELS - 4, cell), "white")
        ImageDraw.Draw(upright).text((0, cell // 2), name, "black", font, anchor="lm")
        picture.paste(upright.rotate(90, expand=True), (_LABELS + cell * row, 0))
        for column in range(len(matrix)):
            value = shares[row, column]
            left, top = _LABELS + cell * column, _LABELS + cell * row
            shade = tuple(round(255 - value * (255 - dark)) for dark in (8, 48, 107))
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=shade)
            if value >= 0.005:
                draw.text((left + cell // 2 - 1, top + cell // 2), f"{100 * value:.0f}",
                          "white" if value > 0.5 else "black", font, anchor="mm")
    return np.array(picture)
