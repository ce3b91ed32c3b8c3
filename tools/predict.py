#!/usr/bin/env python3
"""Predict images, folders of them, or videos with one trained network, or with several together.

    python -m tools.predict --checkpoint runs/demo/demo__p5--l.pt --out predicted photos/
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

import argparse
import contextlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.sources import find_sources  # noqa: E402
from utils.arguments import number  # noqa: E402
from utils.console import progress_bar  # noqa: E402
from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402
from utils.files import make_folder, replacing, sha256, write_bytes, write_json  # noqa: E402
from utils.options import add_protocol_options  # noqa: E402

_NETWORKS = (".pt", ".pth", ".safetensors", ".onnx")
_FOLDERS = ("labels", "overlays", "confidence")
_LONGEST_JPEG = 65500  # pixels, the format's own limit
_THUMBNAIL = 224  # pixels: side of a picture in the panel
_AHEAD = 4  # images that are read before they are needed
_WAITING = 12  # files that wait to be written; images may be large
_LOST = 0.02  # share of a video's frames that may be missing: some files only estimate their number


class Picture(NamedTuple):
    """An image to predict: where it comes from, the name of what is made of it, and its pixels (H, W, 3) uint8 BGR."""

    path: Path
    name: str
    image: object


class Problems(dict):
    """What could not be predicted: path -> why. ``turned`` are predicted images that viewers show turned."""

    def __init__(self):
        super().__init__()
        self.turned = []

    def add(self, path, error):
        """Keep the first ``error`` of ``path``, without its advice for those who train."""
        reason = str(error).partition("; replace the file")[0].partition("; correct --data-root")[0]
        self.setdefault(str(path), reason if str(path) in reason else f"{path}: {reason}")


# --- reading ----------------------------------------------------------------------------------------------------------


def read_images(sources, protocol, problems):
    """The ``Picture`` of every image that can be read and shown as ``protocol`` says; others become ``problems``."""
    from data.images import is_turned, read_image
    from dmt.labeling import read_ahead
    from dmt.protocol import tiles

    def read(source):
        try:
            image = read_image(source.path)
            tiles(image.shape[:2], protocol, f"the image {source.path}")
        except UserError as error:
            return error, False
        return Picture(source.path, source.name, image), is_turned(source.path)

    for source, (result, turned) in zip(sources, read_ahead(read, sources, _AHEAD)):
        if isinstance(result, UserError):
            problems.add(source.path, result)
            continue
        if turned:
            problems.turned.append(source.path)
        yield result


def read_frames(source, claimed, frames, protocol, problems):
    """The ``Picture`` of every frame of a video; it becomes one of ``problems`` when there are fewer than it claims."""
    from dmt.protocol import tiles

    number = 0
    for number, frame in enumerate(frames, 1):
        try:
            tiles(frame.shape[:2], protocol, f"a frame of the video {source.path}")
        except UserError as error:
            problems.add(source.path, error)
            return
        yield Picture(source.path, f"{source.name}/{number:06}", frame)
    if not number or claimed - number > max(2, _LOST * claimed):
        problems.add(source.path, f"the video {source.path} is damaged: {number} of its {claimed} frames decode")


# --- writing ----------------------------------------------------------------------------------------------------------


class Output:
    """Writes what is made of pictures into ``folder``, in the threads of ``writers``.

    ``values`` (C,) uint8 are what stands in a label for each class. ``suffix`` is that of overlays (None: none), which
    show the colours by the share ``alpha``. ``panel`` is the number of pictures that the panel shows.
    """

    def __init__(self, folder, writers, description, values, suffix, alpha, panel):
        from data.png import palette_of

        self.folder, self.suffix, self._rows, self._description = folder, suffix, panel, description
        self._shown = {}  # title -> column of the panel
        self._writers, self._values, self._alpha = writers, values, alpha
        self._colors, self._clear = description.palette, description.background
        self._palette = palette_of(description.palette, values.tolist())

    def write(self, picture, decision, append=None):
        """Write the label, the confidence if there is one, and the overlay: as a file, or ``append`` it to a video."""
        classes = decision.classes.cpu().numpy()
        self._writers.add(self._write_label, picture.name, classes)
        if decision.confidence is not None:
            self._writers.add(self._write_grey, picture.name, decision.confidence.cpu().numpy())
        if append is not None:
            append(self._overlay(picture.image, classes))
        elif self.suffix:
            self._writers.add(self._write_overlay, picture, classes)
        if self._rows:
            self._rows -= 1
            self._show(picture.image, classes, decision.confidence)

    def _show(self, image, classes, confidence):
        """Keep a row of the panel, small."""
        import numpy as np

        row = {"image": image[..., ::-1], "prediction": np.array(self._colors, np.uint8)[classes],
               "overlay": self._overlay(image, classes)[..., ::-1]}
        if confidence is not None:
            row["confidence"] = np.repeat(confidence.cpu().numpy()[..., None], 3, axis=-1)
        for title, picture in row.items():
            self._shown.setdefault(title, []).append(_thumbnail(picture))

    def write_panel(self):
        """Write the panel of what ``write`` has kept, if there is anything."""
        from report.panel import write_panel

        if self._shown:
            with replacing(self.folder / "panel.png") as temporary:
                write_panel(temporary, list(self._shown), list(self._shown.values()), self._description, ignored=False)

    def _write_label(self, name, classes):
        from data.png import palette_png
        self._write("labels", f"{name}.png", palette_png(self._values[classes], self._palette))

    def _write_grey(self, name, values):
        import cv2
        self._write("confidence", f"{name}.png", cv2.imencode(".png", values)[1].tobytes())

    def _write_overlay(self, picture, classes):
        import cv2
        suffix = self.suffix if max(classes.shape) <= _LONGEST_JPEG else ".png"
        content = cv2.imencode(suffix, self._overlay(picture.image, classes))[1].tobytes()
        self._write("overlays", f"{picture.name}{suffix}", content)

    def _write(self, kind, name, content):
        write_bytes(self.folder / kind / name, content, durable=False)

    def _overlay(self, image, classes):
        from data.pictures import overlay
        return overlay(image, classes, self._colors, self._alpha, self._clear)


def _thumbnail(picture):
    """``picture`` (H, W, 3) uint8 RGB within a white square."""
    import cv2
    import numpy as np

    share = _THUMBNAIL / max(picture.shape[:2])
    size = tuple(max(1, round(share * side)) for side in picture.shape[:2])
    square = np.full((_THUMBNAIL, _THUMBNAIL, 3), 255, np.uint8)
    small = cv2.resize(np.ascontiguousarray(picture), size[::-1], interpolation=cv2.INTER_NEAREST)
    square[: size[0], : size[1]] = small
    return square


# --- predicting -------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """How to predict: networks, protocol, images at once, whether confidences are wanted, and the largest image."""

    arms: list
    protocol: object
    batch_size: int
    confidence: bool
    max_pixels: int

    def images(self, sources, output, problems):
        """Predict and write the images among ``sources``; returns how many."""
        pictures = read_images(sources, self.protocol, problems)
        return self._run(pictures, output, problems, progress_bar("predict", "image", len(sources)))

    def video(self, source, output, problems):
        """Predict and write the frames of a video; returns how many."""
        from data.pictures import frames, video

        try:
            claimed, rate, decoded = frames(source.path, self.max_pixels)
        except UserError as error:
            problems.add(source.path, error)
            return 0
        pictures = read_frames(source, claimed, decoded, self.protocol, problems)
        path = output.folder / "overlays" / source.name
        with video(path, rate) if output.suffix else contextlib.nullcontext() as append:
            return self._run(pictures, output, problems, progress_bar(source.path.name, "frame", claimed), append)

    def _run(self, pictures, output, problems, progress, append=None):
        from dmt.inference import predict_all

        count = 0
        for picture, (decision,) in progress(predict_all(
                pictures, self.arms, self.protocol, confidence=self.confidence, batch_size=self.batch_size,
                failed=lambda picture, error: problems.add(picture.path, error))):
            output.write(picture, decision, append)
            count += 1
        return count


def load_arms(options, spec):
    """The ``dmt.arms.Arm`` of every checkpoint, in the order of the command line. Raises ``UserError``."""
    from dmt.arms import load_arm
    from dmt.session import choose_device
    from utils.precision import choose_precision

    device = choose_device(options.device)
    precision = choose_precision(options.mixed_precision, "torch", options.amp_dtype, device)
    files = [(path, options.coco or None) for path in options.checkpoint] + [
        (path, True) for path in options.coco_checkpoint]
    arms = [load_arm(path, device, precision, spec, coco, options.aspp_branches) for path, coco in files]
    for arm in arms:
        if arm.description.assumed:
            print(f"note: {arm.path} does not say everything; assumed: {', '.join(arm.description.assumed)}. --dataset "
                  "gives the names and colours of classes", file=sys.stderr)
    return arms


def make_protocol(options, arms, description, spec):
    """The ``dmt.protocol.Protocol`` of the options, with the sizes that the network was made for."""
    from dmt.arms import check_test_size, common_sides
    from dmt.protocol import choose_protocol

    test_size = options.test_size or description.test_size
    crop = description.facts.get("recipe", {}).get("crop")
    if not (isinstance(crop, list) and len(crop) == 2 and all(isinstance(side, int) and side > 0 for side in crop)):
        crop = spec and spec.crop
    window = options.window or crop or test_size
    if options.protocol == "papers" and test_size:
        check_test_size(arms, test_size)
    return choose_protocol(options.protocol, test_size, description.test_by, window, options.stride, options.scales,
                           options.flip, *common_sides(arms))


def label_values(description, spec, ids):
    """(C,) uint8: what stands in a label for each class: its number, or with ``ids`` the mask value of the dataset."""
    import numpy as np
    from dmt.arms import built_in_spec

    values = np.arange(description.num_classes)
    spec = spec or built_in_spec(description)
    if ids and spec is None:
        raise UserError("--ids: which mask values the classes have stands in the dataset's spec; give it by --dataset")
    if ids and spec.label_ids is not None:
        firsts = [spec.label_ids.index(number) if number in spec.label_ids else 256 for number in values]
        if max(firsts) > 255:
            name = description.class_names[firsts.index(max(firsts))]
            raise UserError(f"--ids: {name!r} has no mask value below 256, which is all that a palette PNG can hold; "
                            "leave --ids out")
        values = np.array(firsts)
    return values.astype(np.uint8)


def check_no_overwriting(sources, folder, suffix):
    """Raise ``UserError`` when a file that is written would take the place of an input."""
    inputs = {source.path.resolve() for source in sources}
    for source in sources:
        for kind, end in zip(_FOLDERS, (".png", suffix or ".png", ".png")):
            path = folder / kind / f"{source.name}{end}"
            if path.resolve() in inputs:
                raise UserError(f"{path} is one of the images to predict and would be replaced; choose another --out")


def report(problems, done, folder):
    """Name what could not be predicted, and exit with status 1 if there is any."""
    if problems.turned:
        print(f"note: {len(problems.turned)} of the images carry an orientation tag, {problems.turned[0]} for one: "
              "viewers turn them, but neither training nor prediction does; turn the files (mogrify -auto-orient)",
              file=sys.stderr)
    for reason in problems.values():
        print(f"error: {reason}", file=sys.stderr)
    if problems:
        rest = f"the other {done} are predicted in {folder}" if done else "nothing was predicted"
        print(f"error: {len(problems)} of the inputs could not be predicted, see above; {rest}", file=sys.stderr)
        sys.exit(1)


@reports_user_errors
def main(arguments=None):
    """Predict what the command line names."""
    options = parse(arguments)
    from data.images import limit_pixels
    from data.specs import load_spec
    from dmt.arms import common_description
    from dmt.labeling import Writers

    limit_pixels(options.max_pixels)
    spec = load_spec(options.dataset) if options.dataset else None
    folder, suffix = Path(options.out).expanduser(), None if options.no_overlays else f".{options.overlay_format}"
    sources = find_sources(options.input, options.recursive, [folder / kind for kind in _FOLDERS])
    check_no_overwriting(sources, folder, suffix)
    arms = load_arms(options, spec)
    description = common_description(arms)
    protocol = make_protocol(options, arms, description, spec)
    job = Job(arms, protocol, options.batch_size, options.confidence, options.max_pixels)
    values = label_values(description, spec, options.ids)
    make_folder(folder)
    print(f"{' and '.join(str(arm.path) for arm in arms)}: {description.num_classes} classes; protocol: {job.protocol}",
          flush=True)
    problems = Problems()
    with Writers(_WAITING) as writers:
        output = Output(folder, writers, description, values, suffix, options.alpha, options.panel)
        done = job.images([source for source in sources if not source.video], output, problems)
        done += sum(job.video(source, output, problems) for source in sources if source.video)
    output.write_panel()
    write_json(folder / "predictions.json", {
        "networks": [{"file": str(arm.path), "sha256": sha256(arm.path), "dataset": arm.description.name,
                      "input_format": arm.description.input_format.name} for arm in arms],
        "class_names": list(description.class_names), "palette": [list(color) for color in description.palette],
        "label_values": values.tolist(), "protocol": job.protocol.values(), "predicted": done,
        "not_predicted": list(problems.values())})
    print(f"{done} image{'s' * (done != 1)} predicted, see {folder}")
    report(problems, done, folder)


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
                           fromfile_prefix_chars="@",
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add, count = parser.add_argument, number(int, 1, "a positive whole number", high=10**9)
    add("input", nargs="*", metavar="INPUT", help="image, folder, glob in quotes ('a/**/*.png'), video, or "
        "@FILE for a file that names them, one a line")
    add("--checkpoint", metavar="FILE", action="append", default=[],
        help="network: NAME.pt of a training stage, or a .onnx file of tools/export.py; several times: an ensemble")
    add("--out", metavar="DIR", required=True, help="folder for everything written")
    add("--recursive", action="store_true", help="look into the folders inside of folders, too")
    group = parser.add_argument_group("what is written")
    group.add_argument("--no-overlays", action="store_true", help="labels only")
    group.add_argument("--overlay-format", choices=("jpg", "png"), default="jpg", help="of overlays of images (jpg)")
    group.add_argument("--alpha", metavar="X", type=number(float, 0, "a number from 0 to 1", high=1), default=0.6,
                       help="how much of an overlay is colour; the background class stays as it is (0.6)")
    group.add_argument("--confidence", action="store_true", help="write confidence maps, too")
    group.add_argument("--panel", metavar="N", type=number(int, 0, "a whole number from 0 to 100", high=100), default=0,
                       help="draw the first N images beside their predictions, too (0)")
    group.add_argument("--ids", action="store_true", help="labels hold the mask values of the dataset's own files, as "
                       "the server of Cityscapes wants them, instead of class numbers")
    add_protocol_options(parser, "original")
    group = parser.add_argument_group("network (checkpoints of this version say all of this)")
    group.add_argument("--dataset", metavar="{voc,city,YAML}",
                       help="names and colours of the classes; the names must be the checkpoint's (its own)")
    group.add_argument("--test-size", metavar=("H", "W"), nargs=2, type=count,
                       help="size that images are padded or resized to (the checkpoint's)")
    group.add_argument("--coco", action="store_true", help="old checkpoints that do not say so take the input format "
                       "of the COCO weights")
    group.add_argument("--coco-checkpoint", metavar="FILE", action="append", default=[],
                       help="like --checkpoint, for an old one with --coco beside one without")
    group.add_argument("--aspp-branches", type=int, choices=(2, 4),
                       help="active branches of the head, for old checkpoints that do not say it (2)")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch-size", metavar="N", type=count, default=8,
                       help="images of one padded size, or windows, at once; fewer where they are large (8)")
    group.add_argument("--max-pixels", metavar="N", type=count, default=100_000_000,
                       help="refuse images with more pixels than this (100000000)")
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    group.add_argument("--mixed-precision", action="store_true", help="compute in 16 bits (needs a GPU)")
    group.add_argument("--amp-dtype", choices=("fp16", "bf16"), default="fp16", help="16-bit format (fp16)")
    return parser


if __name__ == "__main__":
    main()
