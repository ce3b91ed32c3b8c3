"""The pixels of each round, looked at once: what its pseudo labels are worth, and what the networks remember.

The launchers remove predictions after they have served, so what was counted is kept as round-N.json, with a few small
pictures, under the digests of the labellings it is of; ``report.run`` reads it.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data import images, transforms
from data.lists import names_digest, unlabeled_names
from data.specs import UNLABELED, load_spec, resolve_root
from data.store import PseudoLabelStore
from dmt.labeling import stored_predictions
from dmt.thresholds import apply_thresholds
from report import analysis
from report.run import PIXELS_FORMAT
from utils.errors import UserError
from utils.files import write_bytes, write_json
from utils.options import parse_options

NO_LABEL = (224, 224, 192)  # VOC's cream
_SIDE = 240  # longest side of a small picture in pixels
_SHOWN = 2  # images of a kind and round
_THREADS = min(8, os.cpu_count() or 1)


class Gone(Exception):
    """Labels or predictions that are needed are no longer there; the message says which."""


class RunData:
    """The dataset of a run, as far as it is there: its spec, and its root or None; ``note`` says what is missing.

    Dataset, root and folder of lists are those of the run's first stage unless they are given.
    """

    def __init__(self, run, dataset=None, data_root=None):
        stage = run.stages[0]
        started_in = Path(stage.environment.get("directory") or ".")

        def path(value):  # relative ones are meant from where the stage was started
            value = Path(value).expanduser()
            return str(value if value.exists() or value.is_absolute() else started_in / value)

        options = {**vars(parse_options([])), **stage.config}
        name = options["dataset"]
        self.spec = load_spec(dataset or (path(name) if "." in name or "/" in name else name))
        self.note, self.root, self._lists = None, None, options["lists_dir"] and path(options["lists_dir"])
        try:
            self.root = resolve_root(self.spec, data_root or (options["data_root"] and path(options["data_root"])))
        except UserError as error:
            if data_root:
                raise
            self.note = str(error)

    def unlabeled(self, manifest):
        """Names of the unlabelled images of a labelling."""
        listed = replace(self.spec, lists=str(Path(self._lists).absolute())) if self._lists else self.spec
        return unlabeled_names(listed, self.root, manifest["split"], manifest["split_id"])

    def has_masks(self, manifest):
        """Whether any of a few images of the labelling has a mask."""
        names = self.unlabeled(manifest)
        return any(self._mask(name) is not None for name in names[:: max(1, len(names) // 20)])

    def truth(self, name, test_size):
        """The mask (H, W) uint8 of an unlabelled image in the geometry of its pseudo label, or None without one."""
        path = self._mask(name)
        if path is None:
            return None
        mask = images.read_mask(path, self.spec)
        return transforms.resize_nearest(mask, test_size) if self.spec.test_by == "resize" else mask

    def picture(self, name, test_size):
        """An unlabelled image (H, W, 3) uint8 RGB, in the geometry of its pseudo label."""
        image = images.read_image(self.spec.image_path(self.root, name, UNLABELED))[..., ::-1]
        return transforms.resize_image(image, test_size) if self.spec.test_by == "resize" else image

    def _mask(self, name):
        path = self.spec.label_path(self.root, name, UNLABELED)
        return path if path is not None and path.is_file() else None


class Labels:
    """The pseudo labels of a finished ``report.run.Labelling`` and the predictions that they were made of.

    ``names`` are its unlabelled images, ``predictions`` says whether they are still there. Raises ``Gone`` where the
    labels were removed, ``UserError`` for other data.
    """

    def __init__(self, labelling, data, earlier=None):
        self.arm, self.manifest, self.store = labelling.arm, labelling.manifest, PseudoLabelStore(labelling.folder)
        self.test_size = tuple(self.manifest["test_size"])
        self.thresholds = torch.tensor(self.manifest["thresholds"])
        self.names = data.unlabeled(self.manifest)
        if (data.spec.name, names_digest(self.names)) != (self.manifest["dataset"], self.manifest["names_sha256"]):
            raise UserError(f"the pseudo labels in {labelling.folder} are of other images than the dataset has now; give the "
                            "dataset and the lists that the run was made with (--dataset, --data-root)")
        if not self.store.label_path(self.names[0]).is_file():
            raise Gone(f"the labels in {labelling.folder} were removed after they had served")
        self.predictions = self.store.logits_path(self.names[0]).is_file()
        store = PseudoLabelStore(earlier.folder) if earlier else None  # holds the previous network's predictions
        self.earlier = store if store and store.logits_path(self.names[0]).is_file() else None

    def predicted(self, name):
        """(classes (H, W) uint8 that the network predicts, label by thresholds alone) of an image."""
        (classes, confidences), = stored_predictions(self.store, [name], self.test_size)
        return classes.numpy(), apply_thresholds(classes, confidences, self.thresholds).numpy()

    def label(self, name):
        """(label (H, W) uint8 with 255 = ignored, grey confidence (H, W) uint8) of an image."""
        return self.store.read_label(name)

    def predicted_earlier(self, name):
        """Classes (H, W) that the arm's network of the round before predicts, or None."""
        return stored_predictions(self.earlier, [name], self.test_size)[0][0].numpy() if self.earlier else None

    def truth(self, data, name, shape):
        """The mask of an image, 255 where it is unknown. Raises ``UserError`` where it has another ``shape``."""
        truth = data.truth(name, self.test_size)
        if truth is None:
            return np.full(shape, analysis.IGNORED, np.uint8)
        if truth.shape != shape:
            raise UserError(f"{self.store.label_path(name)} and the mask of {name} differ in size; give the dataset "
                            "that the run was made with (--dataset, --data-root)")
        return truth


def look(run, folder, data, count=500, progress=lambda number: iter):
    """Count the pixels of every round whose labels are there, on ``count`` images (0: all), and keep it in ``folder``.

    ``data`` is the ``RunData``; ``progress(round)`` wraps the names. Fills ``run.looks``, and ``run.gone`` with
    reasons.
    """
    torch.set_num_threads(1)  # the images are the parallelism
    for number, labellings in run.rounds_of_labels():
        known = run.looks.get(number)
        try:
            if data.root is None:
                raise Gone(data.note)
            if known and known["asked"] == count and (known["truth"] or not data.has_masks(labellings[0].manifest)):
                continue
            earlier = {made.arm: made for made in run.labellings if made.round == labellings[0].round - 1}
            arms = [Labels(made, data, earlier.get(made.arm)) for made in labellings]
            for labels in arms:
                if not labels.predictions:
                    raise Gone(f"the predictions in {labels.store.folder} were removed after they had served")
            values, scores = _count(arms, data, evenly_spaced(arms[0].names, count), progress(number))
            panels = _panels(arms, data, scores, values["truth"], Path(folder) / "figures", number)
        except (Gone, UserError) as error:
            if known is None:
                run.gone[number] = str(error)
            continue
        run.looks[number] = {"format": PIXELS_FORMAT, "labellings": {made.name: made.digest for made in labellings},
                             "round": number, "asked": count, **values, "panels": panels}
        run.gone.pop(number, None)
        write_json(Path(folder) / f"round-{number}.json", run.looks[number])


def right_shares(run, name, data, count=0):
    """Right shares {"right_before", "right_after"} PLE of the pseudo labels that the checkpoint ``name`` made.

    Compared are ``count`` images (0: all). None where nothing can be compared; {} where the labels are gone.
    """
    try:
        labels = Labels(next(made for made in run.labellings if made.name == name), data)
    except Gone:
        return {}
    classes, apart = data.spec.num_classes, labels.manifest["previous"] and labels.predictions

    def one(image):
        after = labels.label(image)[0]
        before = labels.predicted(image)[1] if apart else after
        truth = labels.truth(data, image, after.shape)
        return np.stack([analysis.joint(truth, maps, classes) for maps in (before, after)])

    with ThreadPoolExecutor(_THREADS) as pool:
        shares = [analysis.accuracy(part) for part in sum(pool.map(one, evenly_spaced(labels.names, count)))]
    before, after = (None if np.isnan(value) else value for value in shares)
    return {"right_before": before if apart or not labels.manifest["previous"] else None, "right_after": after}


def evenly_spaced(names, count):
    """``count`` of the names at even distances; all of them when there are no more or ``count`` is 0."""
    if not count or count >= len(names):
        return list(names)
    return [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]


# --- counting ---------------------------------------------------------------------------------------------------------


def _count(arms, data, names, progress):
    """(sums over the images as plain values, name -> {(kind, arm): share of its pixels})."""
    total, scores = {}, {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, (counts, own) in zip(progress(names), pool.map(lambda name: _image(arms, data, name), names)):
            scores[name] = own
            for key, value in counts.items():
                total[key] = total[key] + value if key in total else value
    known = bool(total["known"])
    values = {"images": len(names), "of": len(arms[0].names), "truth": known, "between": None,
              "arms": {labels.arm: _arm_values(total, labels.arm, known) for labels in arms}}
    if "between" in total:
        together = total["between"][:-1, :-1]
        apart = together - np.diag(np.diag(together))
        pairs = [np.unravel_index(cell, apart.shape) for cell in np.argsort(-apart, axis=None, kind="stable")[:8]]
        values["between"] = {
            "arms": [labels.arm for labels in arms], "same": np.diag(together).tolist(),
            "first": together.sum(axis=1).tolist(), "second": together.sum(axis=0).tolist(),
            "pairs": [[int(a), int(b), int(apart[a, b])] for a, b in pairs if apart[a, b]],
            "changes": total["between changes"].tolist() if known else None}
    return values, scores


def _image(arms, data, name):
    """(counts, scores) of one image: {what or (what, arm): number or array}, {(kind, arm): share of the pixels}."""
    classes, counts, scores, predictions = data.spec.num_classes, {}, {}, []
    for labels in arms:
        predicted, before = labels.predicted(name)
        after, old, arm = labels.label(name)[0], labels.predicted_earlier(name), labels.arm
        truth = labels.truth(data, name, predicted.shape)
        changes = analysis.changes(before, after, truth, classes)
        counts.update({("predicted", arm): np.bincount(predicted.ravel(), minlength=classes), ("changes", arm): changes,
                       ("before", arm): analysis.joint(truth, before, classes),
                       ("after", arm): analysis.joint(truth, after, classes),
                       ("merge", arm): analysis.joint(before, after, classes)})
        if old is not None:
            counts["memory", arm] = analysis.changes(old, predicted, truth, classes)
        made = analysis.outcomes(changes)
        scores["mended", arm] = (made["mended"] + made["newly right"]) / truth.size
        scores["spoilt", arm] = (made["spoilt"] + made["dropped"]) / truth.size
        scores["changed", arm] = np.count_nonzero(before != after) / truth.size
        predictions.append(predicted)
    counts["known"] = np.count_nonzero(truth != analysis.IGNORED)
    if len(arms) == 2:
        counts["between"] = analysis.joint(*predictions, classes)
        counts["between changes"] = analysis.changes(*predictions, truth, classes)
        scores["disagree", arms[0].arm] = np.count_nonzero(predictions[0] != predictions[1]) / truth.size
    return counts, scores


def _arm_values(total, arm, known):
    merge = total["merge", arm]
    same = int(np.trace(merge[:-1, :-1]))
    values = {"predicted": total["predicted", arm].tolist(), "pixels": int(merge.sum()),
              "merge": {"same label": same, "other label": int(merge[:-1, :-1].sum()) - same,
                        "newly labelled": int(merge[-1, :-1].sum()), "dropped": int(merge[:-1, -1].sum()),
                        "still ignored": int(merge[-1, -1])},
              "changes": total["changes", arm].tolist() if known else None,
              "memory": total["memory", arm].tolist() if known and ("memory", arm) in total else None}
    for when in ("before", "after"):
        counts = total[when, arm]
        values[when] = {"labelled": counts[:, :-1].sum(axis=0).tolist(),
                        "compared": counts[:-1, :-1].sum(axis=0).tolist(), "right": np.diag(counts)[:-1].tolist()}
    return values


# --- pictures ---------------------------------------------------------------------------------------------------------


def _panels(arms, data, scores, known, folder, number):
    """Pictures of the images where the arms disagree most and where PLE mended and spoilt most, as plain values.

    Without truth: where PLE changed most.
    """
    panels = []
    for kind in ("disagree", "mended", "spoilt") if known else ("disagree", "changed"):
        ranked = sorted(((own[key], name, key[1]) for name, own in scores.items() for key in own
                         if key[0] == kind and own[key] > 0), key=lambda entry: (-entry[0], *entry[1:]))
        for place, (score, name, arm) in enumerate(ranked[:_SHOWN], start=1):
            columns = _columns(arms, next(labels for labels in arms if labels.arm == arm), data, name)
            files = []
            for column, (title, pixels) in enumerate(columns.items(), start=1):
                suffix, content = _encoded(pixels, data.spec.palette)
                files.append([title, f"round-{number}-{kind}-{place}-{column}.{suffix}"])
                write_bytes(folder / files[-1][1], content, durable=False)
            panels.append({"kind": kind, "image": name, "arm": arm, "share": score, "files": files})
    return panels


def _columns(arms, shown, data, name):
    """Title -> (H, W, 3) uint8 RGB photograph, (H, W) uint8 label map, or (H, W, 1) uint8 grey map."""
    label, grey = shown.label(name)
    truth = data.truth(name, shown.test_size)
    columns = {"image": data.picture(name, shown.test_size), **({} if truth is None else {"truth": truth})}
    columns.update({f"arm {labels.arm}": labels.predicted(name)[0] for labels in arms})
    if shown.manifest["previous"]:
        columns[f"label of {shown.arm} before PLE"] = shown.predicted(name)[1]
    columns[f"label of {shown.arm}" + (" after PLE" if shown.manifest["previous"] else "")] = label
    return {**columns, "confidence": grey[..., None]}


def _encoded(pixels, palette):
    """(suffix, content) of a small picture."""
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
    if pixels.ndim == 2:
        image.putpalette(colors(palette).tobytes())
    scale = min(1, _SIDE / max(image.size))
    image = image.resize([max(1, round(side * scale)) for side in image.size],
                         Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.BOX)
    content, photograph = io.BytesIO(), image.mode == "RGB"
    image.save(content, "JPEG" if photograph else "PNG", **({"quality": 85} if photograph else {"optimize": True}))
    return "jpg" if photograph else "png", content.getvalue()


def colors(palette):
    """(256, 3) uint8: the colours (RGB) of the classes, black for numbers of no class, cream for 255."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)], table[255] = palette, NO_LABEL
    return table
