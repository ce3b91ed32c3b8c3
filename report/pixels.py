"""The pixels of each round, looked at once: what its pseudo labels are worth, and what the networks remember.

The launchers remove predictions after they have served, so what was counted is kept as round-N.json, with a few small
pictures; ``report.run`` reads it.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data import images, transforms
from data.lists import evenly_spaced, names_digest
from data.masks import color_table
from data.specs import UNLABELED, load_spec
from data.store import PseudoLabelStore
from dmt.labeling import stored_predictions
from dmt.session import Data
from dmt.thresholds import apply_thresholds
from report import analysis
from report.run import PIXELS_FORMAT, digests
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import replacing, write_json
from utils.options import parse_options

_SIDE = 240  # longest side of a small picture in pixels
_SHOWN = 2  # images of a kind and round


def data_of(run, dataset=None, data_root=None):
    """(the ``dmt.session.Data`` of a run, None), or (None, what is missing of it).

    Dataset, root and folder of lists are those of the run's first stage unless they are given.
    """
    stage = run.stages[0]

    def path(value):  # relative ones are meant from where the stage was started
        value = Path(value).expanduser()
        return str(value if value.exists() else Path(stage.environment.get("directory", ".")) / value)

    options = {**vars(parse_options([])), **stage.config}
    name, root, lists_dir = (options[key] for key in ("dataset", "data_root", "lists_dir"))
    dataset = dataset or (path(name) if "." in name or "/" in name else name)
    load_spec(dataset)  # what is wrong with a spec is an error; only the images may be gone
    try:
        return Data(dataset, data_root or (root and path(root)), lists_dir and os.path.abspath(path(lists_dir)),
                    test_size=run.dataset.get("test_size")), None
    except UserError as error:
        if data_root:
            raise
        return None, str(error)


class Labels:
    """The pseudo labels of a finished ``report.run.Labelling`` with the images and predictions they were made of.

    ``names`` are its unlabelled images, ``predictions`` says whether they are still there, ``earlier`` is the arm's
    labelling of the round before. Raises ``UserError`` where the labels are gone, and for other data.
    """

    def __init__(self, labelling, data, earlier=None):
        self.arm, self.manifest, self.enhanced = labelling.arm, labelling.manifest, labelling.enhanced
        self.store, self.spec, self.root = PseudoLabelStore(labelling.folder), data.spec, data.root
        self.test_size = tuple(self.manifest["test_size"])
        self.names = [sample.name for sample in data.unlabeled(self.manifest["split"], self.manifest["split_id"])]
        if (self.spec.name, names_digest(self.names)) != (self.manifest["dataset"], self.manifest["names_sha256"]):
            raise UserError(f"the pseudo labels in {labelling.folder} are of other images than the dataset has now; "
                            "give the dataset and the lists that the run was made with (--dataset, --data-root)")
        if not self.store.label_path(self.names[0]).is_file():
            raise UserError(f"the labels in {labelling.folder} were removed after they had served")
        self.predictions = self.store.logits_path(self.names[0]).is_file()
        store = PseudoLabelStore(earlier.folder) if earlier else None  # holds the previous network's predictions
        self._earlier = store if store and store.logits_path(self.names[0]).is_file() else None

    def maps(self, name):
        """What there is of an image's pixels, a dict of (H, W) uint8: "label", and "confidence", its grey level;
        "truth"; "predicted", the network's classes, and "before", the label by thresholds alone; "earlier", the classes
        of the arm's network of the round before. Raises ``UserError`` where the truth has another size than the label.
        """
        found = dict(zip(("label", "confidence"), self.store.read_label(name)))
        path = self.spec.label_path(self.root, name, UNLABELED)
        if path is not None and path.is_file():
            found["truth"] = self._resized(images.read_mask(path, self.spec), transforms.resize_nearest)
            if found["truth"].shape != found["label"].shape:
                raise UserError(f"{self.store.label_path(name)} and the mask of {name} differ in size; give the "
                                "dataset that the run was made with (--dataset, --data-root)")
        if self.predictions:
            (classes, confidences), = stored_predictions(self.store, [name], self.test_size)
            thresholds = torch.tensor(self.manifest["thresholds"])
            found.update(predicted=classes.numpy(), before=apply_thresholds(classes, confidences, thresholds).numpy())
        if self._earlier:
            found["earlier"] = stored_predictions(self._earlier, [name], self.test_size)[0][0].numpy()
        return found

    def picture(self, name):
        """The image (H, W, 3) uint8 RGB, in the geometry of its label."""
        image = images.read_image(self.spec.image_path(self.root, name, UNLABELED))
        return self._resized(image, transforms.resize_image)[..., ::-1]

    def _resized(self, array, resize):
        return resize(array, self.test_size) if self.spec.test_by == "resize" else array


def look(run, folder, data, missing, count=400):
    """Count the pixels of every round whose labels are there, on ``count`` images (0: all), and keep it in ``folder``.

    ``data`` and ``missing`` are what ``data_of`` gives. Fills ``run.looks``, and ``run.gone`` with reasons.
    """
    torch.set_num_threads(1)  # the images are the parallelism
    labels = run.labels()
    for number, labellings in labels.items():
        if run.looks.get(number, {}).get("asked") == count:
            continue
        earlier = {made.arm: made for made in labels.get(number - 1, ())}
        try:
            if data is None:
                raise UserError(missing)
            arms = [Labels(made, data, earlier.get(made.arm)) for made in labellings]
            for one in arms:
                if not one.predictions:
                    raise UserError(f"the predictions in {one.store.folder} were removed after they had served")
            values, scores = _count(arms, evenly_spaced(arms[0].names, count), f"labels of round {number}")
            # Without truth nothing is mended.
            panels = _panels(arms, scores, ("disagree", "mended", "spoilt") if values["truth"] else (
                "disagree", "changed"), Path(folder) / "figures", number)
        except UserError as error:
            if number not in run.looks:
                run.gone[number] = str(error)
            continue
        run.looks[number] = {"format": PIXELS_FORMAT, "labellings": digests(labellings), "asked": count, **values,
                             "panels": panels}
        write_json(Path(folder) / f"round-{number}.json", run.looks[number])


# --- counting ---------------------------------------------------------------------------------------------------------


def _count(arms, names, title):
    """(sums over the images as plain values, [(kind of picture, share of the image's pixels, name, arm)])."""
    total, scores = Counter(), []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        counted = pool.map(lambda name: _image(arms, name), names)
        for counts, own in progress_bar(counted, title, "image", len(names)):
            for key, value in counts.items():
                total[key] = total[key] + value
            scores += own
    known = any(total["changes", labels.arm].any() for labels in arms)
    return {"images": len(names), "of": len(arms[0].names), "truth": known,
            "agreement": float(total["same"] / total["pixels"]) if len(arms) == 2 else None, "arms": {labels.arm: {
                "predicted": total["predicted", labels.arm].tolist(),
                **{key: total[key, labels.arm].tolist() if known and (key, labels.arm) in total else None
                   for key in ("changes", "memory")},
                **{when: dict(zip(("labelled", "compared", "right"), total[when, labels.arm].tolist()))
                   for when in ("before", "after")}} for labels in arms}}, scores


def _image(arms, name):
    """(counts, [(kind of picture, share of the pixels, name, arm)]) of one image."""
    classes, counts, scores, predictions = arms[0].spec.num_classes, {}, [], []
    for arm, maps in ((labels.arm, labels.maps(name)) for labels in arms):
        label, before, predicted = maps["label"], maps["before"], maps["predicted"]
        truth, size = maps.get("truth", np.full_like(label, analysis.IGNORED)), label.size
        changes = analysis.changes(before, label, truth, classes)
        counts.update({("predicted", arm): np.bincount(predicted.ravel(), minlength=classes), ("changes", arm): changes,
                       ("before", arm): analysis.judged(before, truth, classes),
                       ("after", arm): analysis.judged(label, truth, classes)})
        if "earlier" in maps:
            counts["memory", arm] = analysis.changes(maps["earlier"], predicted, truth, classes)
        made = analysis.outcomes(changes)
        scores += [("mended", (made["mended"] + made["newly right"]) / size, name, arm),
                   ("spoilt", (made["spoilt"] + made["dropped"]) / size, name, arm),
                   ("changed", np.count_nonzero(before != label) / size, name, arm)]
        predictions.append(predicted)
    if len(arms) == 2:
        counts.update(same=np.count_nonzero(predictions[0] == predictions[1]), pixels=size)
        scores.append(("disagree", 1 - counts["same"] / size, name, arms[0].arm))
    return counts, scores


# --- pictures ---------------------------------------------------------------------------------------------------------


def _panels(arms, scores, kinds, folder, number):
    """Pictures of the images with the highest scores of each kind, as plain values."""
    panels = []
    for kind in kinds:
        ranked = sorted((-share, name, arm) for of, share, name, arm in scores if of == kind and share)
        for place, (share, name, arm) in enumerate(ranked[:_SHOWN], start=1):
            files = []
            for title, pixels in _columns(arms, next(labels for labels in arms if labels.arm == arm), name).items():
                photograph = title == "image"
                file = f"round-{number}-{kind}-{place}-{len(files) + 1}.{'jpg' if photograph else 'png'}"
                small = Image.fromarray(np.ascontiguousarray(pixels))
                small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX if photograph else Image.Resampling.NEAREST)
                with replacing(folder / file, durable=False) as path:
                    small.save(path)
                files.append([title, file])
            panels.append({"kind": kind, "image": name, "arm": arm, "share": -share, "files": files})
    return panels


def _columns(arms, shown, name):
    """Title -> picture (H, W, 3) or, of the confidence, (H, W) uint8."""
    table, maps = color_table(shown.spec.palette), shown.maps(name)
    columns = {"truth": maps.get("truth"), **{f"arm {labels.arm}": labels.maps(name)["predicted"] for labels in arms},
               f"label of {shown.arm} before PLE": maps["before"] if shown.enhanced else None,
               f"label of {shown.arm}" + (" after PLE" if shown.enhanced else ""): maps["label"]}
    return {"image": shown.picture(name), **{title: table[part] for title, part in columns.items() if part is not None},
            "confidence": maps["confidence"]}
