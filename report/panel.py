"""One picture of a run: unlabelled images, truth, pseudo labels before and after PLE, and predictions side by side."""

from predict import load, pictures
from report.pixels import NO_LABEL, Labels, colors, evenly_spaced


def labelling_to_show(run):
    """The labelling whose pseudo labels the panel shows: the last with PLE and a ratio below 1, else the last of all.

    None where all labels are gone.
    """
    made = [one for one in run.labellings if one.manifest and any((one.folder / "labels").rglob("*.png"))]
    enhanced = [one for one in made if one.enhanced]
    below = [one for one in enhanced if one.manifest["rules"]["ratio"] < 1]
    return next((rows[-1] for rows in (below, enhanced, made) if rows), None)


def columns_of(run, data, summary, labelling, count):
    """The panel of ``count`` images: title -> pictures (H, W, 3) uint8 RGB."""
    labels = Labels(labelling, data)
    names, test_size, table = evenly_spaced(labels.names, count), labels.test_size, colors(data.spec.palette)
    after = [labels.label(name)[0] for name in names]
    truths = [labels.truth(data, name, label.shape) for name, label in zip(names, after)]
    columns = {"image": [data.picture(name, test_size) for name in names]}
    if any(data.truth(name, test_size) is not None for name in names):  # unlabelled images of one's own have none
        columns["truth"] = [table[truth] for truth in truths]
    made = f"pseudo label\nround {labelling.round}, arm {labelling.arm}, ratio {labelling.manifest['rules']['ratio']:g}"
    if labelling.enhanced and labels.predictions:
        columns[f"{made}\nbefore PLE"] = [table[labels.predicted(name)[1]] for name in names]
    columns[made + ("\nafter PLE" if labelling.enhanced else "")] = [table[label] for label in after]
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


def write_panel(path, columns, spec):
    """Draw ``columns`` side by side (see ``predict.pictures.write_panel``); colours of classes and no label below."""
    pictures.write_panel(path, columns, (*spec.class_names, "ignored"), (*spec.palette, NO_LABEL))
