"""The pixels of one round, looked at once: what its pseudo labels are worth, and what the networks remember.

The launchers remove labels and predictions after they have served, so the figures are kept as JSON (and a few small
pictures) in the run folder, under the digests of the labellings they are of.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dmt import analysis
from utils.errors import UserError
from utils.files import read_json, write_json

FORMAT = 1
_THREADS = min(8, os.cpu_count() or 1)
_SHOWN = 2  # images of a kind and round


class Gone(Exception):
    """Labels or predictions that the figures need are no longer there; the message says which."""


def figures(folder, labellings, earlier, data, images, progress=iter):
    """The figures of the labellings of one round (its arms), from the file in ``folder`` if it is of these labellings.

    ``labellings`` are whole ``tools.run_folder.Labelling`` of one round; ``earlier`` those of the round before, where
    there are any; ``data`` the ``RunData`` or None to look at no pixels; ``images`` the number of images to look at
    (0: all), evenly spaced. Returns a dict (see ``_Look``). Raises ``Gone`` with the reason where it cannot be had.
    """
    number = labellings[0].round + 1  # the round that learns from them
    path = Path(folder) / f"round-{number}.json"
    key = {"format": FORMAT, "labellings": {labelling.name: labelling.digest for labelling in labellings}}
    known = read_json(path) if path.is_file() else {}
    known = known if all(known.get(name) == value for name, value in key.items()) else None
    try:
        if data is None or data.root is None:
            raise Gone(data.note if data is not None else "not looked at yet")
        if known is not None and known["asked"] == images and (known["truth"] or not data.has_masks(labellings[0])):
            return known
        look = _Look(labellings, earlier, data, images)
        values = {**key, "round": number, "asked": images, **look.count(progress)}
        values["panels"] = look.draw(Path(folder) / "figures", number)
    except (Gone, UserError) as error:
        if known is None:
            raise Gone(str(error)) from error
        return known
    write_json(path, values)
    return values


class _Arm:
    """What is needed of one arm: its labels, its predictions and those of its network of the round before."""

    def __init__(self, labelling, earlier):
        from data.store import PseudoLabelStore
        from dmt.labeling import LabelingRules
        from dmt.thresholds import codes_of_thresholds

        self.name, self.manifest = labelling.arm, labelling.manifest
        if labelling.pruned:
            raise Gone(f"the labels in {labelling.folder} were removed after they had served")
        self.store = PseudoLabelStore(labelling.folder)
        self.test_size = tuple(self.manifest["test_size"])
        self.threshold_codes = codes_of_thresholds(np.asarray(self.manifest["thresholds"], np.float32))
        self.rules = LabelingRules(**self.manifest["rules"])
        # The labelling of the round before holds the previous network's predictions; one that was made apart holds
        # them itself.
        places = [labelling.folder / "previous"] + ([earlier.folder] if earlier else [])
        self.earlier = next((PseudoLabelStore(place) for place in places if (place / "logits").is_dir()), None)

    def maps(self, name):
        """(predicted classes, label before PLE, label after, grey confidence, earlier prediction or None) of an image."""
        from dmt.labeling import stored_prediction
        from dmt.thresholds import apply_thresholds

        classes, codes = stored_prediction(self.store, name, self.test_size)
        before = apply_thresholds(classes, codes, self.threshold_codes)
        after, grey = self.store.read_pseudo_label(name)
        old = stored_prediction(self.earlier, name, self.test_size)[0] if self.earlier else None
        return classes, before, after, grey, old


class _Look:
    """One look at the labels of a round. Raises ``Gone`` when some are no longer there."""

    def __init__(self, labellings, earlier, data, images):
        import torch
        torch.set_num_threads(1)  # the images are the parallelism

        self.data, self.spec = data, data.spec
        former = {labelling.arm: labelling for labelling in earlier}
        self.arms = [_Arm(labelling, former.get(labelling.arm)) for labelling in labellings]
        first = self.arms[0]
        names = data.unlabeled(first.manifest["split"], first.manifest["split_id"])
        for arm in self.arms:
            arm.store.check_split(self.spec.name, arm.manifest["split"], arm.manifest["split_id"], names)
            if not arm.store.logits_path(names[0]).is_file():
                raise Gone(f"the predictions in {arm.store.folder} were removed after they had served")
        self.of, self.names = len(names), evenly_spaced(names, images)
        if any(arm.earlier and not arm.earlier.logits_path(self.names[0]).is_file() for arm in self.arms):
            for arm in self.arms:
                arm.earlier = None

    def count(self, progress=iter):
        """Look at every image; the sums as plain values. A few images are remembered for ``draw``."""
        total, self._scores = {}, {}
        with ThreadPoolExecutor(_THREADS) as pool:
            for name, (counts, scores) in zip(progress(self.names), pool.map(self._image, self.names)):
                _add(total, counts)
                self._scores[name] = scores
        self._known = int(total["known"]) > 0
        arms = {arm.name: _arm_values(total[arm.name], self._known) for arm in self.arms}
        values = {"images": len(self.names), "of": self.of, "truth": self._known, "arms": arms, "between": None}
        if "between" in total:
            values["between"] = _between_values(total["between"], [arm.name for arm in self.arms], self._known)
        return values

    def _image(self, name):
        classes = self.spec.num_classes
        maps = {arm.name: arm.maps(name) for arm in self.arms}
        truth = self.data.truth(name, self.arms[0].test_size)
        shape = next(iter(maps.values()))[0].shape
        truth = np.full(shape, analysis.IGNORED, np.uint8) if truth is None else truth
        if truth.shape != shape:
            raise UserError(f"the mask of {name} is {truth.shape[1]} x {truth.shape[0]} pixels, its pseudo label "
                            f"{shape[1]} x {shape[0]}; give the dataset of the run (--data-root)")
        counts, scores = {"known": np.count_nonzero(truth != analysis.IGNORED)}, {}
        for arm, (predicted, before, after, _, old) in maps.items():
            changes = analysis.changes(before, after, truth, classes)
            counts[arm] = {
                "predicted": np.bincount(predicted.ravel(), minlength=classes),
                "before": analysis.joint(truth, before, classes), "after": analysis.joint(truth, after, classes),
                "merge": analysis.joint(before, after, classes), "changes": changes}
            if old is not None:
                counts[arm]["memory"] = analysis.changes(old, predicted, truth, classes)
                counts[arm]["moved"] = np.array([np.count_nonzero(old != predicted), old.size])
            made = analysis.outcomes(changes)
            scores["mended", arm] = (made["mended"] + made["newly right"]) / truth.size
            scores["spoilt", arm] = (made["spoilt"] + made["dropped"]) / truth.size
            scores["changed", arm] = int(np.count_nonzero(before != after)) / truth.size
        if len(self.arms) == 2:
            first, second = (maps[arm.name][0] for arm in self.arms)
            counts["between"] = {"joint": analysis.joint(first, second, classes),
                                 "changes": analysis.changes(first, second, truth, classes)}
            scores["disagree", self.arms[0].name] = int(np.count_nonzero(first != second)) / first.size
        return counts, scores

    def draw(self, folder, number):
        """Pictures of the images where the arms disagree most and where PLE mended and spoilt most, as plain values.

        Without truth: where PLE changed most.
        """
        from tools.reporting.pictures import write_panel

        panels = []
        for kind in ("disagree", "mended", "spoilt") if self._known else ("disagree", "changed"):
            ranked = sorted(((scores[key], name, key[1]) for name, scores in self._scores.items() for key in scores
                             if key[0] == kind and scores[key] > 0), key=lambda entry: (-entry[0], *entry[1:]))
            for place, (score, name, arm) in enumerate(ranked[:_SHOWN], start=1):
                shown = next(one for one in self.arms if one.name == arm)
                files = write_panel(folder, f"round-{number}-{kind}-{place}", self._panel(name, shown), self.spec)
                panels.append({"kind": kind, "image": name, "arm": arm, "share": score, "files": files})
        return panels

    def _panel(self, name, shown):
        """The columns of a panel: title -> (H, W, 3) uint8 RGB picture or (H, W) uint8 label map."""
        _, before, after, grey, _ = shown.maps(name)
        truth = self.data.truth(name, shown.test_size)
        columns = {"image": self.data.picture(name, shown.test_size)}
        if truth is not None:
            columns["truth"] = truth
        columns.update({f"arm {arm.name}": arm.maps(name)[0] for arm in self.arms})
        if shown.manifest["previous"]:
            columns[f"label of {shown.name} before PLE"] = before
        columns[f"label of {shown.name}" + (" after PLE" if shown.manifest["previous"] else "")] = after
        columns["confidence"] = np.repeat(grey[..., None], 3, axis=2)
        return columns


def evenly_spaced(names, count):
    """``count`` of the names at even distances; all of them when there are no more or ``count`` is 0."""
    if not count or count >= len(names):
        return list(names)
    return [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]


def _arm_values(total, known):
    merge = total["merge"]
    values = {"predicted": total["predicted"].tolist(), "pixels": int(merge.sum()),
              "merge": {"same label": int(np.trace(merge[:-1, :-1])),
                        "other label": int(merge[:-1, :-1].sum() - np.trace(merge[:-1, :-1])),
                        "newly labelled": int(merge[-1, :-1].sum()), "dropped": int(merge[:-1, -1].sum()),
                        "still ignored": int(merge[-1, -1])},
              "changes": total["changes"].tolist() if known else None,
              "memory": total["memory"].tolist() if known and "memory" in total else None,
              "moved": total["moved"].tolist() if "moved" in total else None}
    for when in ("before", "after"):
        counts = total[when]
        values[when] = {"labelled": counts[:, :-1].sum(axis=0).tolist(),
                        "compared": counts[:-1, :-1].sum(axis=0).tolist(), "right": np.diag(counts)[:-1].tolist()}
    return values


def _between_values(total, arms, known):
    joint = total["joint"][:-1, :-1]
    apart = joint.copy()
    np.fill_diagonal(apart, 0)
    pairs = [np.unravel_index(cell, joint.shape) for cell in np.argsort(-apart, axis=None, kind="stable")[:8]]
    return {"arms": arms, "same": np.diag(joint).tolist(), "first": joint.sum(axis=1).tolist(),
            "second": joint.sum(axis=0).tolist(),
            "pairs": [[int(a), int(b), int(joint[a, b])] for a, b in pairs if apart[a, b]],
            "changes": total["changes"].tolist() if known else None}


def _add(total, part):
    """Add the numbers and arrays of a nested dict to those of another one of the same form."""
    for key, value in part.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total[key] + value if key in total else value
