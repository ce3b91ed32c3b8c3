"""One picture of a run: unlabelled images, truth, pseudo labels before and after PLE, and predictions side by side."""

from predict import load, pictures
from report.pixels import NO_LABEL, Labels, colors, evenly_spaced


def draw(run, data, summary, count, path):
    """Draw the panel of ``count`` images of the ``report.run.Run``, if any of its labels are still there."""
    labelling = labelling_to_show(run)
    if labelling:
        pictures.write_panel(path, columns_of(run, data, summary, labelling, count),
                             (*data.spec.class_names, "ignored"), (*data.spec.palette, NO_LABEL))
        print(f"panel: {path}")


def labelling_to_show(run):
    """The labelling whose pseudo labels the panel shows: the last with PLE and a ratio below 1, else the last of all.

    None where all labels are gone.
    """
    made = [one for one in run.labellings if one.manifest and any((one.folder / "labels").rglob("*.png"))]
    return max(made, key=lambda one: (one.enhanced, one.manifest["rules"]["ratio"] < 1, one.round, one.arm),
               default=None)


def columns_of(run, data, summary, labelling, count):
    """The panel of ``count`` images: title -> pictures (H, W, 3) uint8 RGB."""
    labels, table = Labels(labelling, data), colors(data.spec.palette)
    names, test_size = evenly_spaced(labels.names, count), labels.test_size
    columns = {"image": [data.picture(name, test_size) for name in names]}
    truths = [data.truth(name, test_size) for name in names]
    if all(truth is not None for truth in truths):  # unlabelled images of one's own have none
        columns["truth"] = [table[truth] for truth in truths]
    made = f"pseudo label\nround {labelling.round}, arm {labelling.arm}, ratio {labelling.manifest['rules']['ratio']:g}"
    if labelling.enhanced and labels.predictions:
        columns[f"{made}\nbefore PLE"] = [table[labels.predicted(name)[1]] for name in names]
    columns[made + ("\nafter PLE" if labelling.enhanced else "")] = [table[labels.label(name)[0]] for name in names]
    for title, end in (("prediction\nafter the last round", summary["final"] and summary["final"]["best_stage"]),
                       ("prediction\nsupervised alone", summary["baseline"] and summary["baseline"]["stage"])):
        checkpoint = run.folder / f"{end}.pt"
        if end and checkpoint.is_file():
            predicted = predictions(checkpoint, data, columns["image"], test_size)
            columns[f"{title}\n{end}"] = [table[classes] for classes in predicted]
    return columns


def predictions(checkpoint, data, images, test_size):
    """Classes (H, W) uint8 that the network in the file ``checkpoint`` predicts for ``images`` (H, W, 3) uint8 RGB."""
    network = load(checkpoint, device="cpu", protocol="papers", test_size=test_size, test_by=data.spec.test_by)
    return [network.predict(image)[0] for image in images]
