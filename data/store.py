"""The pseudo-label store: what a labelling stage leaves, one folder per round and arm.

    manifest.json        which checkpoint, lists, thresholds and rules the labels came from; written last
    labels/NAME.png      pseudo label after thresholds and PLE, palette PNG, 255 = ignored: any viewer opens it
    confidence/NAME.png  confidence of those labels, 8-bit grey PNG, 0 where the label is 255
    logits/NAME.npz      the network's own output at its resolution, 16 bits: the raw prediction, kept because in the
                         next round it is the "previous" prediction of PLE, and needs no second forward pass then
    logits.json          which checkpoint, list and network the logits came from

Logits are not compressed: that would save a tenth of them and take longer than all the rest of a labelling.
"""

import io
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data.masks import write_palette_png
from utils.errors import UserError
from utils.files import read_json, remove_left_overs, write_bytes, write_json

FORMAT = 2
_READING = threading.Lock()  # numpy reads headers by Python's parser, which before 3.11.8 fails at random in threads


class PseudoLabelStore:
    """Reads and writes the ``folder`` of one labelling. ``palette`` (RGB triples) colours the labels."""

    def __init__(self, folder, palette=()):
        self.folder, self.palette = Path(folder), palette

    # --- one image ----------------------------------------------------------------------------------------------------

    def label_path(self, name):
        """Path of the pseudo label of image ``name``."""
        return self.folder / "labels" / f"{name}.png"

    def confidence_path(self, name):
        """Path of the confidence of image ``name``."""
        return self.folder / "confidence" / f"{name}.png"

    def logits_path(self, name):
        """Path of the raw prediction of image ``name``."""
        return self.folder / "logits" / f"{name}.npz"

    def write_logits(self, name, steps, size, map_size):
        """Store a raw prediction: ``steps`` (C, h, w) uint16 (see ``dmt.prediction.quantize``), the part of a map of
        ``map_size`` that an image of ``size`` needs; both sizes are (height, width)."""
        content = io.BytesIO()
        np.savez(content, steps=steps, size=size, map_size=map_size)
        write_bytes(self.logits_path(name), content.getvalue(), durable=False)

    def read_logits(self, name):
        """(steps (C, *map_size) uint16, size) of image ``name``; 0 where nothing of the map was needed.

        Raises ``UserError`` when the file is missing or damaged; a damaged one is removed, so that a labelling makes it
        anew.
        """
        path = self.logits_path(name)
        try:
            with _READING, np.load(path) as file:
                part, size, map_size = file["steps"], file["size"].tolist(), file["map_size"].tolist()
            steps = np.zeros((len(part), *map_size), np.uint16)
            steps[:, : part.shape[1], : part.shape[2]] = part
        except Exception as error:  # damaged bytes meet nearly every kind of exception
            if not isinstance(error, (OSError, MemoryError)):
                path.unlink()
            raise UserError(f"the prediction {path} is missing or damaged ({error}); run the labelling again, it "
                            "predicts this image anew") from error
        return steps, tuple(size)

    def write_label(self, name, labels, grey):
        """Store a pseudo label: ``labels`` (H, W) uint8, 255 = ignored, and the ``grey`` confidence (H, W) uint8."""
        write_palette_png(self.label_path(name), labels, self.palette)
        content = io.BytesIO()
        Image.fromarray(grey).save(content, "PNG", compress_level=1)
        write_bytes(self.confidence_path(name), content.getvalue(), durable=False)

    def read_label(self, name):
        """(labels (H, W) uint8 with 255 = ignored, grey confidence (H, W) uint8) of image ``name``."""
        return _read_png(self.label_path(name)), _read_png(self.confidence_path(name))

    # --- all images ---------------------------------------------------------------------------------------------------

    def begin(self, source, anew=False):
        """Make the store invalid and ready for logits that come from ``source`` (plain values).

        Logits of another source, or all of them if ``anew``, are removed.
        """
        (self.folder / "manifest.json").unlink(missing_ok=True)
        remove_left_overs(self.folder, "**/*")
        if anew or not self.has_logits_of(source):
            shutil.rmtree(self.folder / "logits", ignore_errors=True)
            write_json(self.folder / "logits.json", source)

    def has_logits_of(self, source):
        """Whether the logits here, all or some, come from ``source``."""
        try:
            return read_json(self.folder / "logits.json") == source
        except UserError:
            return False

    def damaged(self, names):
        """The pseudo-label files of ``names`` that are missing, cut off or changed, as paths in order."""
        paths = [path for name in names for path in (self.label_path(name), self.confidence_path(name))]
        with ThreadPoolExecutor(4) as pool:
            return [path for path, whole in zip(paths, pool.map(_is_whole, paths)) if not whole]

    def write_manifest(self, values):
        """Write the manifest, which makes the store valid. It comes last, when all the rest is on the disk."""
        write_json(self.folder / "manifest.json", {"format": FORMAT, **values})

    def read_manifest(self):
        """The manifest. Raises ``UserError`` when there is none (never labelled, or labelling was cut off)."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"there are no pseudo labels in {self.folder}: run main.py --labeling first "
                            "(with the same --pseudo-dir), or let an interrupted labelling finish")
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{path} was written by another version of this software; run the labelling again")
        return manifest


def _is_whole(path):
    try:
        with Image.open(path) as image:
            image.verify()  # the CRC of every chunk
        return True
    except Exception:  # as above
        return False


def _read_png(path):
    try:
        content = path.read_bytes()
        Image.open(io.BytesIO(content)).verify()  # decoding does not look at the CRC of the pixels
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"mode {image.mode}")
            return np.array(image)
    except Exception as error:  # as above
        raise UserError(f"the pseudo label {path} is missing or damaged ({error}); "
                        "run the labelling again, it makes damaged files anew") from error
