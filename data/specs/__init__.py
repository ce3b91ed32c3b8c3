"""What a dataset is: one small declarative spec, built in (VOC, Cityscapes, ...) or a user's own YAML file."""

import os
from dataclasses import dataclass
from pathlib import Path

from data import patterns
from data.specs import reader
from utils.errors import UserError

BUILT_IN = Path(__file__).parent
BUILT_IN_NAMES = sorted(file.stem for file in BUILT_IN.glob("*.yaml"))
MAX_PIXELS = 100_000_000  # of an image or a mask; what claims to have more is refused
UNLABELED = "unlabeled"  # the subset of the images without masks, which may lie in a folder of their own


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset. Sizes are (height, width) in pixels; colours are RGB, 0 to 255.

    ``background`` is the class that PLE treats as background, or ``None`` when there is none.
    ``ignore`` is the mask value of pixels without a label (up to 65535), or ``None`` when there is none.
    ``label_ids[v]`` is the class of the mask value v (a number that is no class where it belongs to none; larger values
    belong to none), or ``None`` when mask values are classes already.
    ``mask_colors`` are pairs (colour, class or 255 = ignored) where the colours of a mask say the class, else ``None``;
    with ``ignore_other_colors`` all other colours are ignored.
    ``test_by`` is "pad" (zero-pad bottom and right to ``test_size``) or "resize" (images and masks are resized
    to ``test_size`` before anything else, in training too). A ``test_size`` of ``None`` is that of the largest image;
    ``dmt.session.Data`` finds it.
    ``images``, ``labels`` and ``unlabeled_images`` are patterns (see ``data.patterns``), or tuples of patterns of which
    the first with a file counts. ``lists`` lies below ``lists_root``, or below the root when that is ``None``.
    """

    name: str
    class_names: tuple
    palette: tuple
    background: int | None
    ignore: int | None
    label_ids: tuple | None
    images: str | tuple
    labels: str | tuple
    lists: str
    train_lists: tuple
    val_lists: tuple
    crop: tuple
    test_size: tuple | None
    test_by: str
    root: str | None
    root_variable: str | None
    divisors: tuple  # pairs (name of the split, divisor)
    dms_splits: tuple
    unlabeled_images: str | tuple | None = None
    mask_colors: tuple | None = None
    ignore_other_colors: bool | None = None
    lists_root: str | None = None
    max_pixels: int = MAX_PIXELS  # set by no file

    @property
    def num_classes(self):
        """Number of classes, the background included, the ignore value not."""
        return len(self.class_names)

    @property
    def resized(self):
        """The size to which images and masks are resized before anything else; ``None``: they stay as they are."""
        return self.test_size if self.test_by == "resize" else None

    def background_class(self, asked):
        """The class that PLE treats as background, or ``None``; ``asked`` is "spec", "none", or its number.

        Raises ``UserError`` for a number that is no class.
        """
        number = {"spec": self.background, "none": None}.get(asked, asked)
        if number is not None and number >= self.num_classes:
            raise UserError(f"--background {number}: {self.name} has the classes 0 to {self.num_classes - 1}; give one "
                            "of them or none")
        return number

    def image_path(self, root, name, subset="train"):
        """Path of the image ``name``; ``subset`` is train, val or test, or ``UNLABELED``: then the image is looked for
        in ``unlabeled_images`` first. Raises ``UserError`` when two files match."""
        if subset == UNLABELED:
            return patterns.find(root, self.patterns("unlabeled_images") + self.patterns("images"), name)
        return patterns.find(root, self.patterns("images"), name, subset)

    def label_path(self, root, name, subset="train"):
        """Path of the mask of ``name``; ``None`` where that image lies apart from those with masks."""
        if subset == UNLABELED:
            subset = "train"
            if self.unlabeled_images and self.image_path(root, name, UNLABELED) != self.image_path(root, name):
                return None
        return patterns.find(root, self.patterns("labels"), name, subset)

    def list_path(self, root, file_name):
        """Path of a name list."""
        return Path(self.lists_root or root) / self.lists / file_name

    def patterns(self, key):
        """The patterns of ``key`` (images, labels or unlabeled_images) as a tuple, in order."""
        given = getattr(self, key)
        return (given,) if isinstance(given, str) else given or ()


def load_spec(name_or_file):
    """The built-in spec of that name (one of ``BUILT_IN_NAMES``) or the one in the given YAML file.

    Raises ``UserError`` naming the file, the line, the key and the fix.
    """
    text = str(name_or_file)
    path = BUILT_IN / f"{text}.yaml" if text in BUILT_IN_NAMES else Path(text)
    if not path.is_file():
        raise UserError(f"--dataset {text}: no such dataset; use one of {', '.join(BUILT_IN_NAMES)}, or the path of a "
                        "YAML spec")
    return DatasetSpec(**reader.read(path))


def resolve_root(spec, data_root=None):
    """The dataset's root folder: ``data_root``, else the spec's environment variable, else the spec's own root."""
    variable = spec.root_variable
    root = data_root or (os.environ.get(variable) if variable else None) or spec.root
    if not root:
        also = f" or set {variable}" if variable else ""
        raise UserError(f"where is the dataset {spec.name}? Give its root folder with --data-root{also}")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"the dataset root {root} is not a folder; correct --data-root"
                        + (f" or {variable}" if variable else ""))
    return root
