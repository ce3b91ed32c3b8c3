#!/usr/bin/env python3
"""Predict images, folders of them, or videos with one trained network, or with several together.

    python -m tools.predict --checkpoint runs/demo/demo__p3--l.pt --out predicted photos/
    python -m tools.predict --checkpoint c.pt --checkpoint i.pt --out predicted --flip --scales 0.75 1 1.25 'a/**/*.jpg'
    python -m tools.predict --checkpoint network.onnx --out predicted --confidence street.mp4 one.png

--out gets, with the same folders beneath as the inputs have:

    labels/NAME.png       class numbers as an indexed palette PNG of the image's size, the format of the VOC server
    overlays/NAME.jpg     the classes' colours over the image (of a video: NAME.mp4)
    confidence/NAME.png   with --confidence: 255 times the probability of the winning class, rounded, as a grey PNG
    panel.png             with --panel N: the first N images side by side with their predictions
    predictions.json      what predicted them: networks with their SHA-256, classes, colours, protocol, files left out

Classes, colours, network and input format come from the checkpoint. Each checkpoint takes its input in its own format.
Several decide by the mean of their probabilities; so do scales, the flip and windows that overlap. The labels of a
video are labels/NAME/000001.png and so on. What stands in --out already is replaced, file by file.

An image that cannot be read does not stop the others: it is named at the end, and the exit status is 1 then. It is 2
when the command itself is wrong, and 0 when all is well.
"""

import re
import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import OneLineParser, UserError, number, reports_user_errors  # noqa: E402
from utils.options import add_protocol_options  # noqa: E402

_NETWORKS = (".pt", ".pth", ".safetensors", ".onnx")


@reports_user_errors
def main(arguments=None):
    """Predict what the command line names."""
    options = parse(arguments)
    from predict.command import run  # loads torch, for which --help and wrong options need not wait

    run(options)


def parse(arguments):
    """The options; a checkpoint among the inputs counts as one more --checkpoint."""
    options = _parser().parse_intermixed_args(_with_scales_joined(sys.argv[1:] if arguments is None else arguments))
    inputs = [line for text in options.input for line in _lines(text)]
    networks = [text for text in inputs if text.lower().endswith(_NETWORKS)]
    options.checkpoint += networks
    options.input = [text for text in inputs if text not in networks]
    if not options.checkpoint and not options.coco_checkpoint:
        raise UserError("no network: give --checkpoint FILE (a .pt of a training stage or an exported .onnx)")
    if not options.input:
        raise UserError("nothing to predict: name images, folders, globs or videos after the options")
    return options


def _lines(text):
    """What an input names: itself, or, written @FILE, the lines of a file."""
    if not text.startswith("@"):
        return [text]
    try:
        lines = Path(text[1:]).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{text[1:]} cannot be read as UTF-8 text ({error}); give a file with one path a line behind "
                        "the @") from error
    return [line.strip() for line in lines if line.strip()]


def _with_scales_joined(words):
    """``words`` with the numbers after --scales joined by commas, so that no image is taken for a scale."""
    result, scales = [], False
    for word in words:
        if scales and re.fullmatch(r"[\d.,]+", word):
            result[-1] += f",{word}"
            continue
        scales = word == "--scales"
        result.append("--scales=" if scales else word)
    return result


def _parser():
    parser = OneLineParser(prog="python -m tools.predict", description=__doc__, allow_abbrev=False)
    add, count = parser.add_argument, number(int, 1, "a positive whole number", high=10**9)
    add("input", nargs="*", metavar="INPUT", help="image, folder, glob in quotes ('a/**/*.png'), video, or "
        "@FILE for a file that names them, one a line")
    add("--checkpoint", metavar="FILE", action="append", default=[],
        help="network: NAME.pt of a training stage, or a .onnx file of tools.export; several times: an ensemble")
    add("--out", metavar="DIR", required=True, help="folder for everything written")
    add("--recursive", action="store_true", help="look into the folders inside of folders, too")
    add = parser.add_argument_group("what is written").add_argument
    add("--no-overlays", action="store_true", help="labels only")
    add("--overlay-format", choices=("jpg", "png"), default="jpg", help="of overlays of images (jpg)")
    add("--alpha", metavar="X", type=number(float, 0, "a number from 0 to 1", high=1), default=0.6,
        help="how much of an overlay is colour; the background class stays as it is (0.6)")
    add("--confidence", action="store_true", help="write confidence maps, too")
    add("--panel", metavar="N", type=number(int, 0, "a whole number from 0 to 100", high=100), default=0,
        help="draw the first N images beside their predictions, too (0)")
    add("--ids", action="store_true", help="labels hold the mask values of the dataset's own files, as the server of "
        "Cityscapes wants them, instead of class numbers")
    add_protocol_options(parser, "original")
    add = parser.add_argument_group("network (checkpoints of this version say all of this)").add_argument
    add("--dataset", metavar="{voc,city,YAML}",
        help="names and colours of the classes; the names must be the checkpoint's (its own)")
    add("--test-size", metavar=("H", "W"), nargs=2, type=count,
        help="size that images are padded or resized to (the checkpoint's)")
    add("--coco", action="store_true", help="old checkpoints that do not say so take the input format of COCO weights")
    add("--coco-checkpoint", metavar="FILE", action="append", default=[],
        help="like --checkpoint, for an old one with --coco beside one without")
    add("--aspp-branches", type=int, choices=(2, 4),
        help="active branches of the head, for old checkpoints that do not say it (2)")
    add = parser.add_argument_group("machine").add_argument
    add("--batch-size", metavar="N", type=count, default=8,
        help="images of one padded size, or windows, at once; fewer where they are large (8)")
    add("--max-pixels", metavar="N", type=count, default=100_000_000,
        help="refuse images with more pixels than this (100000000)")
    add("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add("--mixed-precision", action="store_true", help="compute in 16 bits (needs a GPU)")
    add("--amp-dtype", choices=("fp16", "bf16"), default="fp16", help="16-bit format (fp16)")
    return parser


if __name__ == "__main__":
    main()
