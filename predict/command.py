"""What tools.predict does: predict images and videos, and write labels, overlays and confidences."""

import contextlib
import sys
from pathlib import Path

import numpy as np

from data.specs import load_spec
from dmt.session import choose_device
from predict import files
from predict.network import built_in_spec, load
from predict.pictures import FOLDERS, Output, film
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import make_folder, sha256, write_json
from utils.precision import choose_precision


def run(options):
    """Predict what the ``options`` of tools.predict name; exit status 1 where some of it could not be."""
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
    make_folder(folder, "--out")
    print(f"{' and '.join(str(member.path) for member in network.members)}: {len(network.names)} classes; protocol: "
          f"{network.protocol}", flush=True)
    problems = files.Problems()
    output = Output(folder, network.description, values, suffix, options.alpha, options.confidence, options.panel)
    images = [source for source in sources if not source.video]
    done = predict(network, files.read_images(images, problems, options.max_pixels), output, problems,
                   options.batch_size, ("predict", "image", len(images)))
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


def predict(network, pictures, output, problems, batch_size, shown, append=None):
    """Predict and write ``pictures``, (source, image) pairs, or ``append`` them to a video; returns how many."""
    def write(predicted):
        source, image, (decision,) = predicted
        return output.write(source.name, image, decision, film=append is not None)

    count = 0
    predicted = network.predict_all(pictures, batch_size=batch_size, failed=problems.add)
    for overlay, row in files.ahead(write, progress_bar(predicted, *shown), 12):
        count += 1
        if append is not None:
            append(overlay)
        if row and len(output.shown) < output.rows:
            output.shown.append(row)
    return count


def predict_video(network, source, output, problems, options):
    """Predict and write the frames of a video; returns how many."""
    try:
        claimed, rate, first, capture = files.open_video(source, options.max_pixels)
    except UserError as error:
        problems.add(source, error)
        return 0
    path = output.folder / "overlays" / f"{source.name}.mp4"
    with film(path, rate, first) if output.suffix else contextlib.nullcontext() as append:
        return predict(network, files.read_frames(source, claimed, first, capture, problems), output, problems,
                       options.batch_size, (source.path.name, "frame", claimed), append)


def load_networks(options, spec):
    """The ``predict.network.Ensemble`` of the checkpoints of the command line. Raises ``UserError``."""
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
