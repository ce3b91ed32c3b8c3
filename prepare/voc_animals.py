"""VOC's animals at half the resolution, of a prepared VOC: what the built-in spec voc-animals describes."""

import os

import numpy as np
from PIL import Image

from data import images
from data.masks import write_palette_png
from data.lists import find_list, read_list
from data.splits import save_lists
from prepare.common import in_threads
from utils.errors import UserError
from utils.files import replacing

ANIMALS = ("cat", "cow", "dog", "horse", "sheep")


def write_animals(voc, root, spec, out):
    """Write to the folder ``out`` every image of VOC with an animal by its mask, halved, its mask, and the two lists.

    ``voc`` and ``spec`` are the specs of VOC, prepared in ``root``, and of the slice. Masks keep VOC's numbers.
    Images are resampled (Lanczos), of masks every second pixel is taken: heights and widths are rounded up.
    Raises ``UserError``.
    """
    if out.exists() and out.samefile(root):
        raise UserError(f"--animals {out} is the folder of VOC itself, whose images would be replaced; choose another")
    lists = {}
    for path, (file_name,) in ((find_list(voc, root, "training"), spec.train_lists),
                               (find_list(voc, root, "validation"), spec.val_lists)):
        names = read_list(path)
        has_animal = in_threads(lambda name: _write_halved(voc, root, spec, out, name), names, "image")
        lists[file_name] = [name for name in names if has_animal[name]]
        print(f"{len(lists[file_name])} of {len(names)} images of {path.name} show an animal")
    os.sync()
    save_lists(spec.list_path(out, ""), lists)  # last: what has lists is whole


def _write_halved(voc, root, spec, out, name):
    """Write the image ``name`` and its mask unless the mask has no animal. Returns whether it has one."""
    mask = images.read_mask(voc.label_path(root, name), voc)
    if not np.isin(mask, [voc.class_names.index(animal) for animal in ANIMALS]).any():
        return False
    halved = np.ascontiguousarray(mask[::2, ::2])
    pixels = Image.fromarray(np.ascontiguousarray(images.read_image(voc.image_path(root, name))[:, :, ::-1]))  # RGB
    with replacing(spec.image_path(out, name), durable=False) as temporary:
        pixels.resize(halved.shape[::-1], Image.Resampling.LANCZOS).save(temporary, "JPEG", quality=85)
    write_palette_png(spec.label_path(out, name), halved, voc.palette)
    return True
