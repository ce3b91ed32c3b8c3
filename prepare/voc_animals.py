"""VOC's animals at half the resolution, of a prepared VOC: what the built-in spec voc-animals describes."""

import functools
import io

import numpy as np
from PIL import Image

from data import images, png
from data.lists import find_training_list, find_validation_list, read_list
from data.splits import save_lists
from prepare.common import in_parallel
from utils.errors import UserError
from utils.files import sync, write_bytes

ANIMALS = ("cat", "cow", "dog", "horse", "sheep")


def write_animals(voc, root, spec, out, threads):
    """Write to the folder ``out`` every image of VOC with an animal by its mask, halved, its mask, and the two lists.

    ``voc`` and ``spec`` are the specs of VOC, prepared in ``root``, and of the slice. Masks keep VOC's numbers.
    Images are resampled (Lanczos), of masks every second pixel is taken: heights and widths are rounded up.
    Raises ``UserError``.
    """
    sources = ((find_training_list(voc, root), spec.train_lists), (find_validation_list(voc, root), spec.val_lists))
    if out.exists() and out.samefile(root):
        raise UserError(f"--animals {out} is the folder of VOC itself, whose images would be replaced; choose another")
    lists = {}
    write = functools.partial(_write_halved, voc, root, spec, out)
    for path, (file_name,) in sources:
        names = read_list(path)
        has_animal = in_parallel(write, names, f"animals of {path.name}", "image", threads=threads)
        chosen = [name for name, has in zip(names, has_animal) if has]
        if not chosen:
            raise UserError(f"no image of {path} has a {', '.join(ANIMALS)} in its mask; prepare VOC again")
        lists[file_name] = chosen
        print(f"{len(chosen)} of {len(names)} images of {path.name} show an animal")
    sync()
    save_lists(spec.list_path(out, ""), lists)  # last: what has lists is whole


def _write_halved(voc, root, spec, out, name):
    """Write the image ``name`` and its mask unless the mask has no animal. Returns whether it has one."""
    path = voc.label_path(root, name)
    mask = images.read_mask(path, voc)
    if not np.isin(mask, [voc.class_names.index(animal) for animal in ANIMALS]).any():
        return False
    image = voc.image_path(root, name)
    if images.image_size(image) != mask.shape:
        raise UserError(f"the image {image} and its mask {path} have different sizes; prepare VOC again")
    halved, content = mask[::2, ::2], io.BytesIO()
    pixels = Image.fromarray(np.ascontiguousarray(images.read_image(image)[:, :, ::-1]))  # BGR to RGB
    pixels.resize(halved.shape[::-1], Image.Resampling.LANCZOS).save(content, "JPEG", quality=85)
    write_bytes(spec.image_path(out, name), content.getvalue(), durable=False)
    write_bytes(spec.label_path(out, name), png.palette_png(halved, png.palette_of(voc.palette)), durable=False)
    return True
