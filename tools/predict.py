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

import contextlib
import re
import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.console import progress_bar  # noqa: E402
from utils.errors import OneLineParser, UserError, number, reports_user_errors  # noqa: E402
from utils.files import make_folder, sha256, write_json  # noqa: E402
from utils.options import add_protocol_options  # noqa: E402

_NETWORKS = (".pt", ".pth", ".safetensors", ".onnx")


@reports_user_errors
def main(arguments=None):
    """Predict what the command line names."""
    options = parse(arguments)
    # Now torch is loaded, for which --help and wrong options need not wait.
    from data.specs import load_spec
    from predict import files
    from predict.pictures import FOLDERS, Output

    spec = load_spec(options.dataset) if options.dataset else None
    folder, suffix = Path(options.out).expanduser(), None if options.no_overlays else f".{options.overlay_format}"
    sources = files.find_sources(options.input, options.recursive, [folder / kind for kind in FOLDERS])
    inputs = {source.path.resolve() for source in sources}
    for path in (folder / kind / f"{source.name}{end}" for source in sources
                 for kind, end in zip(FOLDERS, (".png", suffix or ".png", ".png"))):
        if path.resolve() in inputs:
            raise UserError(f"{path} is one of the images to predict and would be replaced; choose another --out")
    network = load_networks(options, spec)
    values = label_values(network.description, spec, options.ids)
    make_folder(folder)
    print(f"{' and '.join(str(member.path) for member in network.members)}: {len(network.names)} classes; protocol: "
          f"{network.protocol}", flush=True)
    problems = files.Problems()
    output = Output(folder, network.description, values, suffix, options.alpha, options.confidence, options.panel)
    images = [source for source in sources if not source.video]
    done = predict(network, files.read_images(images, problems, options.max_pixels), output, problems,
                   options.batch_size, progress_bar("predict", "image", len(images)))
    for source in sources:
        if source.video:
            done += predict_video(network, source, output, problems, options)
    output.write_panel()
    write_json(folder / "predictions.json", {
        "networks": [{"file": str(member.path), "sha256": sha256(member.path), "dataset": member.description.name,
                      "input_format": member.description.input_format.name} for member in network.members],
        "class_names": list(network.names), "palette": [list(color) for color in network.palette],
        "label_values": values.tolist(), "protocol": network.protocol.values(), "predicted": done,
        "not_predicted": list(problems.values())})
    print(f"{done} image{'s' * (done != 1)} predicted, see {folder}")
    if problems.turned:
        print(f"note: {len(problems.turned)} of the images carry an orientation tag, {problems.turned[0]} for one: "
              "viewers turn them, but neither training nor prediction does; turn the files (mogrify -auto-orient)",
              file=sys.stderr)
    if problems:
        for reason in problems.values():
            print(f"error: {reason}", file=sys.stderr)
        rest = f"the other {done} are predicted in {folder}" if done else "nothing was predicted"
        print(f"error: {len(problems)} of the inputs could not be predicted, see above; {rest}", file=sys.stderr)
        sys.exit(1)


def predict(network, pictures, output, problems, batch_size, progress, append=None):
    """Predict and write ``pictures``, (source, image) pairs, or ``append`` them to a video; returns how many."""
    from predict.files import ahead

    def write(predicted):
        source, image, (decision,) = predicted
        return output.write(source.name, image, decision, film=append is not None)

    count = 0
    predicted = network.predict_all(pictures, batch_size=batch_size, failed=problems.add)
    for overlay, row in ahead(write, progress(predicted), 12):
        count += 1
        if append is not None:
            append(overlay)
        if row and len(output.shown) < output.rows:
            output.shown.append(row)
    return count


def predict_video(network, source, output, problems, options):
    """Predict and write the frames of a video; returns how many."""
    from predict.files import open_video, read_frames
    from predict.pictures import film

    try:
        claimed, rate, first, capture = open_video(source, options.max_pixels)
    except UserError as error:
        problems.add(source, error)
        return 0
    path = output.folder / "overlays" / f"{source.name}.mp4"
    with film(path, rate, first) if output.suffix else contextlib.nullcontext() as append:
        return predict(network, read_frames(source, claimed, first, capture, problems), output, problems,
                       options.batch_size, progress_bar(source.path.name, "frame", claimed), append)


def load_networks(options, spec):
    """The ``predict.network.Ensemble`` of the checkpoints of the command line. Raises ``UserError``."""
    from dmt.session import choose_device
    from predict import load
    from utils.precision import choose_precision

    device = choose_device(options.device)
    precision = choose_precision(options.mixed_precision, "torch", options.amp_dtype, device)
    coco = [options.coco or None] * len(options.checkpoint) + [True] * len(options.coco_checkpoint)
    network = load(*options.checkpoint, *options.coco_checkpoint, dataset=spec, coco=coco, device=device,
                   aspp_branches=options.aspp_branches, precision=precision, protocol=options.protocol,
                   test_size=options.test_size, window=options.window, stride=options.stride, scales=options.scales,
                   flip=options.flip)
    for member in network.members:
        if member.description.assumed:
            print(f"note: {member.path} does not say everything; assumed: {', '.join(member.description.assumed)}. "
                  "--dataset gives the names and colours of classes", file=sys.stderr)
    return network


def label_values(description, spec, ids):
    """(C,) uint8: what stands in a label for each class: its number, or with ``ids`` the mask value of the dataset."""
    import numpy as np

    from predict.network import built_in_spec

    values, spec = range(description.num_classes), spec or built_in_spec(description)
    if ids and spec is None:
        raise UserError("--ids: which mask values the classes have stands in the dataset's spec; give it by --dataset")
    if ids and spec.label_ids is not None:
        lacking = [name for number, name in enumerate(description.class_names) if number not in spec.label_ids[:256]]
        if lacking:
            raise UserError(f"--ids: {lacking[0]!r} has no mask value below 256, which is all that a palette PNG can "
                            "hold; leave --ids out")
        values = [spec.label_ids.index(number) for number in values]
    return np.array(values, np.uint8)


# --- command line -----------------------------------------------------------------------------------------------------


def parse(arguments):
    """The options; a checkpoint among the inputs counts as one more --checkpoint."""
    options = _parser().parse_intermixed_args(_with_scales_joined(sys.argv[1:] if arguments is None else arguments))
    networks = [text for text in options.input if text.lower().endswith(_NETWORKS)]
    options.checkpoint += networks
    options.input = [text for text in options.input if text not in networks]
    if not options.checkpoint and not options.coco_checkpoint:
        raise UserError("no network: give --checkpoint FILE (a .pt of a training stage or an exported .onnx)")
    if not options.input:
        raise UserError("nothing to predict: name images, folders, globs or videos after the options")
    return options


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
    parser = OneLineParser(prog="python -m tools.predict", description=__doc__, allow_abbrev=False,
                           fromfile_prefix_chars="@")
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
