"""Images for the benchmarks: generated ones of 500 x 375 pixels, as large and as detailed as VOC's."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.lists import read_list
from data.shapes import render
from data.specs import load_spec

SIZE = (375, 500)


def generated(folder, count, size=SIZE, noise=4.0):
    """(spec, root, names) of ``count`` generated images in VOC layout, made if they are not there yet.

    The shapes get a little noise, which brings their JPEGs to the 100 KB or so that VOC's take at that size: the time
    to decode one depends on it.
    """
    spec, root = load_spec("shapes"), Path(folder) / f"generated-{size[0]}x{size[1]}"
    names = [f"image_{number:06d}" for number in range(count)]
    palette = [channel for color in spec.palette for channel in color]
    palette += [0] * (3 * 256 - len(palette))
    for number, name in enumerate(names):
        image_path, label_path = spec.image_path(root, name), spec.label_path(root, name)
        if image_path.exists() and label_path.exists():
            continue
        image, label = render(0, "train", number, *size)
        rng = np.random.default_rng(number)
        image = np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
        image_path.parent.mkdir(parents=True, exist_ok=True)
        label_path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image_path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        mask = Image.fromarray(label)
        mask.putpalette(palette)
        mask.save(label_path)
    return spec, root, names


def camvid(root, count):
    """(spec, root, names) of the first ``count`` training images of CamVid."""
    spec = load_spec("camvid")
    return spec, Path(root), read_list(spec.list_path(root, spec.train_lists[0]))[:count]


def jpeg_bytes(spec, root, names):
    """Mean size of the image files."""
    return sum(spec.image_path(root, name).stat().st_size for name in names) / len(names)
