"""The pseudo-label store: what a labelling stage leaves, one folder per round and arm.

    manifest.json        which checkpoint, list, thresholds and options it came from; written last
    predictions.json     which checkpoint, list and network the logits came from
    labels/NAME.png      pseudo label after thresholds and PLE, palette PNG, 255 = ignored: any viewer opens it
    confidence/NAME.png  confidence of those labels, 8-bit grey PNG, 0 where the label is 255
    logits/NAME.steps    the network's own output at 1/8 resolution, 16-bit: the raw prediction, kept because in the
                         next round it is the "previous" prediction of PLE, and needs no second forward pass then

The last kind is plain binary, little-endian: 8 bytes of magic; height and width of the image and of the whole logit map,
number of classes, rows and columns of what is stored, as 32-bit integers; the steps (see ``Prediction``); the CRC-32 of
all that. Compression would save a tenth of it and take longer than all the rest of a labelling.
"""

import contextlib
import functools
import hashlib
import io
import os
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from data import confidence, png
from utils.errors import UserError
from utils.files import read_sealed_json, sync, write_bytes, write_sealed_json

FORMAT = 1
_MAGIC = b"DMTSTEPS"
_PREDICTION = struct.Struct("<8s7I")
LOGIT_STEP = 1 / 2048  # logits below the pixel's largest, in steps of this; 16 bits reach down to -32

_GREY_LEVEL = 3  # how hard zlib tries on confidences: 9 takes six times as long for a tenth less

# Grey value of a stored confidence: steps of 0.085 in log(p / (1 - p)), from 1/150 to 1 - 2^-24; 0 where ignored.
_ODDS = np.linspace(-5.0, np.log(2.0**24 - 1), 255)
GREY_LEVELS = np.concatenate([[0.0], 1 / (1 + np.exp(-_ODDS))]).astype(np.float32)


def _grey_of_codes():
    p = np.clip(confidence.decode(np.arange(confidence.NUM_CODES)).astype(np.float64), 1e-9, 1 - 2.0**-25)
    odds = np.log(p / (1 - p))
    return np.clip(np.rint((odds - _ODDS[0]) / (_ODDS[1] - _ODDS[0])) + 1, 1, 255).astype(np.uint8)


GREY_OF_CODE = _grey_of_codes()


def grey_confidence(labels, codes):
    """Grey values (H, W) uint8 of confidence ``codes`` (H, W) integers, 0 where ``labels`` are 255; arrays or tensors."""
    if isinstance(codes, torch.Tensor):
        return torch.where(labels == 255, 0, _grey_on(codes.device)[codes.int()])
    return np.where(labels == 255, np.uint8(0), GREY_OF_CODE[codes])


@functools.lru_cache(maxsize=None)
def _grey_on(device):
    with torch.inference_mode(False):
        return torch.from_numpy(GREY_OF_CODE).to(device)


def names_digest(names):
    """SHA-256 of a list of names in their order: how a store recognizes the split it belongs to."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


class PseudoLabelStore:
    """Reads and writes the folder of one labelling. ``palette`` is the dataset's, for the label PNGs."""

    def __init__(self, folder, palette=()):
        self.folder = Path(folder)
        self._palette = png.palette_of(palette)

    def label_path(self, name):
        """Path of the pseudo label of image ``name``."""
        return Path(self.folder, "labels", f"{name}.png")

    def confidence_path(self, name):
        """Path of the confidence of image ``name``."""
        return Path(self.folder, "confidence", f"{name}.png")

    def logits_path(self, name):
        """Path of the raw prediction of image ``name``."""
        return Path(self.folder, "logits", f"{name}.steps")

    def write_logits(self, name, prediction):
        """Store a ``Prediction``."""
        content = _PREDICTION.pack(_MAGIC, *prediction.size, *prediction.map_size, *prediction.steps.shape)
        content += np.ascontiguousarray(prediction.steps, "<u2").tobytes()
        write_bytes(self.logits_path(name), content + struct.pack("<I", zlib.crc32(content)), durable=False)

    def read_logits(self, name):
        """The ``Prediction`` of image ``name``. Raises ``UserError`` when the file is missing or damaged (CRC-32)."""
        path = self.logits_path(name)
        try:
            content = path.read_bytes()
            magic, height, width, *map_size, classes, rows, columns = _PREDICTION.unpack_from(content)
            whole = (magic == _MAGIC and len(content) == _PREDICTION.size + 2 * classes * rows * columns + 4
                     and struct.pack("<I", zlib.crc32(memoryview(content)[:-4])) == content[-4:])
        except (OSError, struct.error):
            whole = False
        if not whole:
            raise UserError(f"the prediction {path} is missing or damaged; delete the file and run the labelling again")
        steps = np.frombuffer(content, "<u2", classes * rows * columns, _PREDICTION.size)
        return Prediction(steps.reshape(classes, rows, columns), (height, width), tuple(map_size))

    def write_pseudo_label(self, name, labels, codes):
        """Store ``labels`` (H, W) uint8 with 255 = ignored and confidence ``codes`` (H, W) uint16."""
        self.write_maps(name, labels, grey_confidence(labels, codes))

    def write_maps(self, name, labels, grey):
        """Store a pseudo label: ``labels`` (H, W) uint8 with 255 = ignored, ``grey`` as ``grey_confidence`` gives it."""
        write_bytes(self.label_path(name), png.palette_png(labels, self._palette), durable=False)
        write_bytes(self.confidence_path(name), png.encoded(grey, _GREY_LEVEL), durable=False)

    def read_pseudo_label(self, name):
        """(labels (H, W) uint8 with 255 = ignored, grey confidence (H, W) uint8) of image ``name``."""
        return _read_png(self.label_path(name)), _read_png(self.confidence_path(name))

    def damaged(self, names):
        """The pseudo-label files of ``names`` that are missing, cut off or changed, as paths in order."""
        paths = [path for name in names for path in (self.label_path(name), self.confidence_path(name))]
        with ThreadPoolExecutor(4) as pool:
            return [path for path, whole in zip(paths, pool.map(_is_whole_png, paths)) if not whole]

    def write_manifest(self, values):
        """Write the manifest, which makes the store valid. It comes last, when all the rest is on the disk."""
        sync()
        write_sealed_json(self.folder / "manifest.json", {"format": FORMAT, **values})

    def remove_manifest(self):
        """Make the store invalid before its labels are written anew."""
        for name in ("manifest.json", "pruned"):
            (self.folder / name).unlink(missing_ok=True)

    def read_manifest(self):
        """The manifest. Raises ``UserError`` when there is none (never labelled, or labelling was cut off)."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"there are no pseudo labels in {self.folder}: run main.py --labeling first "
                            "(with the same --pseudo-dir), or let an interrupted labelling finish")
        manifest = read_sealed_json(path)
        if manifest.get("format") != FORMAT:
            raise UserError(f"{path} was written by another version of this software; run the labelling again")
        return manifest

    def pruned(self):
        """Whether the labels were removed after they had served (the file ``pruned`` says so)."""
        return (self.folder / "pruned").exists()

    def begin_predictions(self, source):
        """Make room for predictions that come from ``source`` (a dict); those of another source are removed."""
        path = self.folder / "predictions.json"
        try:
            if read_sealed_json(path) == source:
                return
        except UserError:
            pass
        shutil.rmtree(self.folder / "logits", ignore_errors=True)
        write_sealed_json(path, source)

    def check_split(self, dataset, split, split_id, names):
        """The manifest, if the store is whole and holds the pseudo labels of ``names``, in that order.

        Raises ``UserError`` otherwise.
        """
        manifest = self.read_manifest()
        if manifest.get("dataset") != dataset or manifest.get("names_sha256") != names_digest(names):
            raise UserError(f"the pseudo labels in {self.folder} are of {manifest.get('dataset')}, split "
                            f"{manifest.get('split')}, id {manifest.get('split_id')}, not of {dataset}, split {split}, "
                            f"id {split_id}; label this split or correct --pseudo-dir")
        return manifest

    def check_files(self, names):
        """Raise ``UserError`` when pseudo labels of ``names`` are missing (``PseudoLabelsPruned`` when removed)."""
        if self.pruned():
            self.remove_manifest()
            raise PseudoLabelsPruned(f"the pseudo labels in {self.folder} were removed after they had served, to save "
                                     "disk, and are needed again; run their labelling again (the launchers do)")
        for kind in ("labels", "confidence"):
            folder = str(self.folder / kind)
            for name in names:  # thousands: plain strings are several times faster than paths
                if not os.path.isfile(f"{folder}/{name}.png"):
                    raise UserError(f"the pseudo label {folder}/{name}.png is missing; run the labelling again")


class Prediction(NamedTuple):
    """A raw prediction: ``steps`` (C, h, w) uint16, how far each logit lies below the largest, in ``LOGIT_STEP``;
    ``size`` of the image and ``map_size`` of the whole logit map, both (height, width)."""

    steps: np.ndarray
    size: tuple
    map_size: tuple


class PseudoLabelsPruned(UserError):
    """Pseudo labels were removed after their round and are needed again; the launchers label again on this status."""

    status = 3


def find_predictions(folder, source):
    """The store beneath ``folder`` whose logits come from ``source`` (see ``begin_predictions``), or None."""
    for path in sorted(Path(folder).glob("*/predictions.json")):
        with contextlib.suppress(UserError):
            if read_sealed_json(path) == source:
                return PseudoLabelStore(path.parent)
    return None


def _is_whole_png(path):
    try:
        return png.is_whole(path.read_bytes())
    except OSError:
        return False


def _read_png(path):
    try:
        content = path.read_bytes()
        values = png.unfiltered(content)
        if values is not None:
            return values
        if not png.is_whole(content):  # Pillow does not look at the CRC of the pixels
            raise ValueError("cut off or changed")
        with Image.open(io.BytesIO(content)) as image:  # changed with some other program
            if image.mode not in ("P", "L"):
                raise ValueError(f"mode {image.mode}")
            return np.array(image)
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise UserError(f"the pseudo label {path} is missing or damaged ({error}); "
                        "run the labelling again, it makes damaged files anew") from error
