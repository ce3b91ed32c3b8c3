"""What TensorBoard shows: curves, a few validation images, and the confusion matrix as a picture."""

import contextlib
import sys

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from data.masks import color_table
from utils.distributed import ALONE

_SIDE = 160  # longest side of an image in the gallery, in pixels: the pictures of every validation are kept


class LiveView:
    """What is shown while a training runs, as events in ``folder`` (None: nothing); those after ``after_step`` are
    dropped. When they cannot be written, the training goes on without them.

    ``spec`` is the dataset's; ``shown`` are the ``data.lists.Sample``s of the validation images that are shown.
    """

    def __init__(self, folder, after_step, spec, shown):
        self._names, self._colors = spec.class_names, color_table(spec.palette)
        self._shown, self._rows, self._writer = shown, {}, None
        with self._if_possible():
            if folder is not None:
                self._writer = SummaryWriter(str(folder), purge_step=after_step or None)

    @contextlib.contextmanager
    def _if_possible(self):
        try:
            yield self._writer
        except OSError as error:
            self._writer = None
            print(f"warning: no more TensorBoard events, they cannot be written: {error.strerror or error}",
                  file=sys.stderr)

    def numbers(self, kind, values, step):
        """Show the numbers in the dict ``values`` of metrics of one kind at ``step``."""
        with self._if_possible() as writer:
            for name, value in values.items() if writer else ():
                if isinstance(value, (int, float)):
                    writer.add_scalar(f"{kind}/{name}", value, step)

    def see(self, sample, image, label, prediction):
        """Keep a validation image that is to be shown, as ``dmt.evaluation.evaluate`` gives it.

        Image (H, W, 3) uint8 BGR tensor, maybe padded at its bottom and right; label and prediction (h, w) integer
        tensors.
        """
        if sample not in self._shown:
            return
        height, width = label.shape
        scale = min(1, _SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(image[:height, :width].numpy()[..., ::-1], size, interpolation=cv2.INTER_AREA)
        maps = [cv2.resize(self._colors[part.cpu().numpy()], size, interpolation=cv2.INTER_NEAREST)
                for part in (label, prediction)]
        self._rows[sample.name] = np.concatenate([picture, *maps], axis=1)

    def validated(self, matrix, iou, step, processes=ALONE):
        """Show the result of a validation: its confusion matrix (C, C), IoU (C,), and the images that the ``processes``
        have seen on the way."""
        for rows in processes.gather(self._rows):
            self._rows.update(rows)
        if not processes.is_first:
            return
        self.numbers("iou", dict(zip(self._names, iou)), step)
        canvas = FigureCanvasAgg(confusion_figure(matrix, self._names))
        canvas.draw()
        pictures = {"confusion": np.asarray(canvas.buffer_rgba())[..., :3]}
        rows = [self._rows[sample.name] for sample in self._shown if sample.name in self._rows]
        if rows:
            width = max(row.shape[1] for row in rows)
            pictures["image, truth, prediction"] = np.concatenate([
                np.pad(row, ((0, 2), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])
        with self._if_possible() as writer:
            for name, pixels in pictures.items() if writer else ():
                writer.add_image(f"validation/{name}", pixels, step, dataformats="HWC")

    def close(self):
        """Write what waits to be written."""
        with self._if_possible() as writer:
            if writer:
                writer.close()


def confusion_figure(matrix, class_names):
    """A confusion matrix (C, C; rows are true classes) as a ``matplotlib.figure.Figure``.

    A cell is the darker the larger its share of the true class's pixels is; the share stands in it in percent.
    """
    shares = 100 * np.asarray(matrix, np.float64) / np.maximum(np.sum(matrix, axis=1, keepdims=True), 1)
    side, places = 1.2 + 0.34 * len(shares), range(len(shares))
    figure = Figure((side, side), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(places, class_names, rotation=90)
    axes.set_yticks(places, class_names)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else "black")
    return figure
