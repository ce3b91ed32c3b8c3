"""The pseudo-label store: what a labelling stage leaves, one folder per round and arm.

    manifest.json        which checkpoint, list, thresholds and options it came from; written last
    labels/NAME.png      pseudo label after thresholds and PLE, palette PNG, 255 = ignored: any viewer opens it
    confidence/NAME.png  confidence of those labels, 8-bit grey PNG, 0 where the label is 255
    logits/NAME.npz      the network's own output at 1/8 resolution, 16-bit: the raw prediction, kept because in the
                         next round it is the "previous" prediction of PLE, and needs no second forward pass then
"""

import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data import confidence
from utils.errors import UserError
from utils.files import read_json, write_bytes, write_json

FORMAT = 1
LOGIT_STEP = 1 / 2048  # logits below the pixel's largest, in steps of this; 16 bits reach down to -32

# Differences to the row above: beside OpenCV's own choice a sixth smaller, and read in half the time.
_GREY_PNG = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP, cv2.IMWRITE_PNG_COMPRESSION, 6]

# Grey value of a stored confidence: steps of 0.085 in log(p / (1 - p)), from 1/150 to 1 - 2^-24; 0 where ignored.
_ODDS = np.linspace(-5.0, np.log(2.0**24 - 1), 255)
GREY_LEVELS = np.concatenate([[0.0], 1 / (1 + np.exp(-_ODDS))]).astype(np.float32)


def _grey_of_codes():
    p = np.clip(confidence.decode(np.arange(confidence.NUM_CODES)).astype(np.float64), 1e-9, 1 - 2.0**-25)
    odds = np.log(p / (1 - p))
    return np.clip(np.rint((odds - _ODDS[0]) / (_ODDS[1] - _ODDS[0])) + 1, 1, 255).astype(np.uint8)


GREY_OF_CODE = _grey_of_codes()


def names_digest(names):
    """SHA-256 of a list of names in their order: how a store recognizes the split it belongs to."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


class PseudoLabelStore:
    """Reads and writes the folder of one labelling. ``palette`` is the dataset's, for the label PNGs."""

    def __init__(self, folder, palette=()):
        self.folder = Path(folder)
        self._palette = [channel for color in palette for channel in color]
        self._palette += [0] * (3 * 255 - len(self._palette)) + [224, 224, 192]  # 255 in VOC's cream

    def label_path(self, name):
        """Path of the pseudo label of image ``name``."""
        return self.folder / "labels" / f"{name}.png"

    def confidence_path(self, name):
        """Path of the confidence of image ``name``."""
        return self.folder / "confidence" / f"{name}.png"

    def logits_path(self, name):
        """Path of the raw prediction of image ``name``."""
        return self.folder / "logits" / f"{name}.npz"

    def write_logits(self, name, steps):
        """Store ``steps`` (C, h, w) uint16: how far each logit lies below the largest, in ``LOGIT_STEP``."""
        content = io.BytesIO()
        np.savez_compressed(content, steps=steps)
        write_bytes(self.logits_path(name), content.getvalue())

    def read_logits(self, name):
        """(C, h, w) uint16 as written. Raises ``UserError`` when the file is missing or damaged."""
        path = self.logits_path(name)
        try:
            with np.load(path, allow_pickle=False) as file:
                steps = file["steps"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise UserError(f"the prediction {path} is missing or damaged ({type(error).__name__}); "
                            "delete the file and run the labelling again") from error
        if steps.dtype != np.uint16 or steps.ndim != 3:
            raise UserError(f"the prediction {path} is damaged; delete the file and run the labelling again")
        return steps

    def write_pseudo_label(self, name, labels, codes):
        """Store ``labels`` (H, W) uint8 with 255 = ignored and confidence ``codes`` (H, W) uint16."""
        image = Image.fromarray(labels)
        image.putpalette(self._palette)
        content = io.BytesIO()
        image.save(content, "PNG")
        write_bytes(self.label_path(name), content.getvalue())
        grey = np.where(labels == 255, np.uint8(0), GREY_OF_CODE[codes])
        _, content = cv2.imencode(".png", grey, _GREY_PNG)
        write_bytes(self.confidence_path(name), content.tobytes())

    def read_pseudo_label(self, name):
        """(labels (H, W) uint8 with 255 = ignored, grey confidence (H, W) uint8) of image ``name``."""
        return _read_png(self.label_path(name)), _read_png(self.confidence_path(name))

    def write_manifest(self, values):
        """Write the manifest, which makes the store valid. It comes last."""
        write_json(self.folder / "manifest.json", {"format": FORMAT, **values})

    def remove_manifest(self):
        """Make the store invalid before it is written anew."""
        (self.folder / "manifest.json").unlink(missing_ok=True)

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

    def check_split(self, dataset, split, split_id, names):
        """Raise ``UserError`` unless the store is whole and holds the pseudo labels of ``names``, in that order."""
        manifest = self.read_manifest()
        if manifest.get("dataset") != dataset or manifest.get("names_sha256") != names_digest(names):
            raise UserError(f"the pseudo labels in {self.folder} are of {manifest.get('dataset')}, split "
                            f"{manifest.get('split')}, id {manifest.get('split_id')}, not of {dataset}, split {split}, "
                            f"id {split_id}; label this split or correct --pseudo-dir")
        for name in names:
            for path in (self.label_path(name), self.confidence_path(name)):
                if not path.is_file():
                    raise UserError(f"the pseudo label {path} is missing; run the labelling again")


def find_predictions(folder, source):
    """A whole store beneath ``folder`` whose logits come from ``source`` (entries of its manifest), or None."""
    for path in sorted(Path(folder).glob("*/manifest.json")):
        store = PseudoLabelStore(path.parent)
        try:
            manifest = store.read_manifest()
        except UserError:
            continue
        if all(manifest.get(key) == value for key, value in source.items()):
            return store
    return None


def _read_png(path):
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"mode {image.mode}")
            return np.array(image)
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise UserError(f"the pseudo label {path} is missing or damaged ({error}); "
                        "delete the folder and run the labelling again") from error
