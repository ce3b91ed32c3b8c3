"""One picture of a run: unlabelled images, truth, pseudo labels before and after PLE, and predictions side by side."""

from data.lists import evenly_spaced
from data.masks import CREAM, color_table
from predict import load, pictures
from report.pixels import Labels


def draw(run, data, count, path):
    """Draw the panel of ``count`` images of the ``report.run.Run``, if any of its labels are still there."""
    labelling = labelling_to_show(run)
    if labelling:
        pictures.write_panel(path, columns_of(run, data, labelling, count), (*data.spec.class_names, "ignored"),
                             (*data.spec.palette, CREAM))
        print(f"panel: {path}")


def labelling_to_show(run):
    """The labelling whose pseudo labels the panel shows: the last with PLE and a ratio below 1, else the last of all.

    None where all labels are gone.
    """
    made = [one for one in run.made if any((one.folder / "labels").rglob("*.png"))]
    return max(made, key=lambda one: (one.enhanced, one.manifest["rules"]["ratio"] < 1, one.round, one.arm),
               default=None)


def columns_of(run, data, labelling, count):
    """The panel of ``count`` images: title -> pictures (H, W, 3) uint8 RGB."""
    labels, table = Labels(labelling, data), color_table(data.spec.palette)
    names = evenly_spaced(labels.names, count)
    maps = [labels.maps(name) for name in names]
    made = f"pseudo label\nround {labelling.round}, arm {labelling.arm}, ratio {labelling.manifest['rules']['ratio']:g}"
    titles = {"truth": "truth", **({"before": f"{made}\nbefore PLE"} if labels.enhanced else {}),
              "label": made + ("\nafter PLE" if labels.enhanced else "")}
    columns = {"image": [labels.picture(name) for name in names], **{
        title: [table[one[key]] for one in maps] for key, title in titles.items()
        if all(key in one for one in maps)}}  # unlabelled images of one's own have no truth
    ends = {"after the last round": max(run.finals, key=lambda stage: stage.miou, default=None),
            "supervised alone": next((stage for stage in run.finished if stage.arm not in (None, *run.arms)), None)}
    for title, end in ends.items():
        checkpoint = run.folder / f"{end.name}.pt" if end and run.last_round else None
        if checkpoint and checkpoint.is_file():
            predicted = predictions(checkpoint, data, columns["image"], labels.test_size)
            columns[f"prediction\n{title}\n{end.name}"] = [table[classes] for classes in predicted]
    return columns


def predictions(checkpoint, data, images, test_size):
    """Classes (H, W) uint8 that the network in the file ``checkpoint`` predicts for ``images`` (H, W, 3) uint8 RGB."""
    network = load(checkpoint, device="cpu", protocol="papers", test_size=test_size, test_by=data.spec.test_by)
    return [network.predict(image)[0] for image in images]
