"""Bytes per labelled pixel on disk, on CamVid with a trained network: all that a round with PLE needs."""

import copy
from pathlib import Path

from benchmarks import measure, plain, rounds
from benchmarks.labeling import RATIO, fresh
from data.lists import read_list
from data.specs import load_spec
from data.store import PseudoLabelStore
from utils.errors import UserError


def main():
    """Labels, confidences, logits, and the logits of the round before."""
    options = measure.arguments(__doc__, trained=True)
    if not (options.camvid_root and options.checkpoints):
        raise UserError("give --camvid-root and --checkpoints PREVIOUS CURRENT")
    spec, root, work = load_spec("camvid"), Path(options.camvid_root), Path(options.work) / "disk"
    names = read_list(spec.list_path(root, spec.train_lists[0]))
    names = names[:20] if options.quick else names
    old, new = (rounds.network(spec.num_classes, checkpoint=file) for file in options.checkpoints)
    previous = PseudoLabelStore(fresh(work / "previous"), spec.palette)
    rounds.predict(old, spec, root, names, previous)
    store, _ = rounds.label(copy.deepcopy(new), spec, root, names, fresh(work / "current"), previous, RATIO)
    labels, _ = store.read_pseudo_label(names[0])
    pixels = len(names) * labels.size
    used = {part: rounds.folder_bytes(store.folder / part) / pixels for part in ("labels", "confidence", "logits")}
    used["previous logits"] = rounds.folder_bytes(previous.folder) / pixels
    file = work / "plain.npy"
    plain.write_pseudo_label(file, labels, labels, ple=True)
    released = file.stat().st_size / labels.size
    total, alone = sum(used.values()), sum(used.values()) - used["previous logits"]
    rows = [measure.row(f"{part}", "B/pixel", None, value) for part, value in used.items()]
    rows += [measure.row("all that a round without PLE needs", "B/pixel", released / 2, alone,
                         gain=released / 2 / alone, target=4),
             measure.row("all that a round with PLE needs", "B/pixel", released, total, gain=released / total,
                         target=("<=", 1.2), note=f"{100 * total / released:.1f} % of the plain procedure's"),
             measure.row("both arms in a round with PLE", "B/pixel", released, 2 * total, gain=released / 2 / total,
                         target=4, note="the plain procedure overwrites one folder, so it holds one arm at a time")]
    measure.report("disk", rows, options, {"images": len(names), "classes": spec.num_classes, "ratio": RATIO,
                                           "files": "apparent sizes"})


if __name__ == "__main__":
    main()
