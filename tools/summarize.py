#!/usr/bin/env python3
"""The table of a finished run: mIoU per arm and round, and how much and how right the pseudo labels are.

    python -m tools.summarize runs/demo

Reads what a launcher left in its run folder and writes summary.json and panel.png into it. The panel shows, side by
side for evenly spaced unlabelled images: the image, the truth, a pseudo label before and after PLE, and predictions.
"Right" is the share of pseudo-labelled pixels whose label is the truth, where the truth is known and not ignored; a
column "before PLE" holds thresholds alone, recomputed from the stored logits. With several runs (seeds, split ids) a
table of them with means follows. Where the truth or the labels (removed to save disk) are gone, a dash stands.
"""

import argparse
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from dmt import analysis  # noqa: E402
from tools.reporting.pictures import UNLABELLED, palette_bytes  # noqa: E402
from tools.reporting.rounds import evenly_spaced  # noqa: E402
from tools.run_folder import RunData, find_stages  # noqa: E402
from tools.run_summary import number, summarize  # noqa: E402
from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402
from utils.files import write_json  # noqa: E402

_THREADS = 2


# --- pseudo labels ----------------------------------------------------------------------------------------------------


def before_enhancement(store, manifest, name):
    """The pseudo label (H, W) uint8 by thresholds alone, decided anew from the stored logits of image ``name``."""
    from dmt.labeling import stored_prediction
    from dmt.thresholds import apply_thresholds, codes_of_thresholds

    classes, codes = stored_prediction(store, name, tuple(manifest["test_size"]))
    return apply_thresholds(classes, codes, codes_of_thresholds(np.asarray(manifest["thresholds"], np.float32)))


def store_of(run, row):
    """The ``data.store.PseudoLabelStore`` of a labelling of the summary."""
    from data.store import PseudoLabelStore  # imports torch, which --help does without
    return PseudoLabelStore(Path(run) / "pseudo" / row["name"])


def names_of(store, data):
    """The unlabelled images whose pseudo labels ``store`` holds, checked to be all there."""
    manifest = store.read_manifest()
    names = data.unlabeled(manifest["split"], manifest["split_id"])
    store.check_split(data.spec.name, manifest["split"], manifest["split_id"], names)
    store.check_files(names)
    return names


def accuracy(store, data, names):
    """Right shares {"before", "after"} of the pseudo labels of ``names``; None where nothing can be compared."""
    manifest = store.read_manifest()
    classes = data.spec.num_classes

    def one(name):
        truth = data.truth(name, tuple(manifest["test_size"]))
        after, _ = store.read_pseudo_label(name)
        if truth is None:
            return np.zeros((2, classes + 1, classes + 1), np.int64)
        if truth.shape != after.shape:
            raise UserError(f"{store.label_path(name)} and the mask of {name} differ in size; give the dataset that "
                            "the run was made with (--dataset, --data-root)")
        before = before_enhancement(store, manifest, name) if manifest["previous"] else after
        return np.stack([analysis.joint(truth, labels, classes) for labels in (before, after)])

    with ThreadPoolExecutor(_THREADS) as pool:
        counts = sum(pool.map(one, names))
    return {when: number(analysis.accuracy(part)) for when, part in zip(("before", "after"), counts)}


def complete(summary, run, data, sample):
    """``tools.run_summary.summarize`` and how right the labels are, of ``sample`` images: the content of summary.json."""
    for row in summary["labellings"]:
        if data.root is not None and not row["pruned"]:
            store = store_of(run, row)
            right = accuracy(store, data, evenly_spaced(names_of(store, data), sample))
            row.update(right_before=right["before"], right_after=right["after"])
    return {**summary, "images_compared": sample or "all"}


# --- tables -----------------------------------------------------------------------------------------------------------

_HEAD = ("round", "arm", "steps", "mIoU", "ratio", "labelled: before PLE", "after", "right: before PLE", "after")


def table_of(summary):
    """The rows of one run as texts. The pseudo labels in a row are those that the row's checkpoint made."""
    rows, made = [_HEAD], {row["name"]: row for row in summary["labellings"]}
    for stage in summary["stages"]:
        row = ["-" if stage["round"] is None else str(stage["round"]), stage["arm"] or stage["name"],
               str(stage["steps"] or "-"), _percent(stage["miou"])]
        labels = made.get(stage["name"])
        if labels:
            after = labels["enhanced"]
            row += [f"{labels['ratio']:g}", _percent(labels["labeled_before"]),
                    _percent(labels["labeled_after"]) if after else "-", _percent(labels["right_before"]),
                    _percent(labels["right_after"]) if after else "-"]
        rows.append(tuple(row + ["-"] * (len(_HEAD) - len(row))))
    return rows


def table_of_runs(summaries):
    """One row a run: final arms against the baseline, and the means."""
    rows = [("run", "baseline mIoU", "final mIoU, mean of arms", "better arm", "gain of the mean")]
    values = []
    for summary in summaries:
        final, baseline = summary["final"] or {}, summary["baseline"] or {}
        values.append((baseline.get("miou"), final.get("mean"), final.get("best"), summary["gain"]))
        rows.append((summary["run"], *map(_percent, values[-1])))
    means = [statistics.mean(column) if None not in column else None for column in zip(*values)]
    return [*rows, ("mean", *map(_percent, means))]


def formatted(rows, markdown=False):
    """The rows as aligned text, or as a Markdown table."""
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def outcome_text(summary):
    """Two sentences about the end of a run: final arms, baseline and what each had."""
    final, baseline = summary["final"], summary["baseline"]
    if final is None:
        return "No rounds in this run."
    steps = ", ".join(f"{arm} {count}" for arm, count in final["steps"].items())
    text = (f"After round {summary['rounds']}: mIoU {_percent(final['mean'])} (mean of the arms), "
            f"{_percent(final['best'])} (better arm). Training steps in all rounds: {steps}")
    if baseline:
        text += (f"; supervised alone {baseline['steps']}, mIoU {_percent(baseline['miou'])}. "
                 f"Gain of the mean: {100 * summary['gain']:+.2f} points")
    return text + "."


def _percent(value):
    return "-" if value is None else f"{100 * value:.2f}"


# --- panel ------------------------------------------------------------------------------------------------------------


def panel_labelling(summary):
    """The labelling whose pseudo labels the panel shows: the last with PLE and a ratio below 1, else the last of all."""
    made = [row for row in summary["labellings"] if not row["pruned"]]
    chosen = [[row for row in made if row["enhanced"] and row["ratio"] < 1], [row for row in made if row["enhanced"]],
              made]
    return next((rows[-1] for rows in chosen if rows), None)


def predictions(checkpoint, data, names, test_size):
    """Classes (H, W) uint8 that the network in the file ``checkpoint`` predicts for each unlabelled image of ``names``."""
    import torch
    from torch.utils.data import DataLoader
    from data.datasets import WholeImages, collate_whole
    from data.specs import UNLABELED
    from dmt.prediction import classify, covering
    from dmt.arms import load_arm
    from utils.precision import Precision

    arm = load_arm(checkpoint, "cpu", Precision("fp32", "cpu"))
    dataset = WholeImages(data.spec, data.root, names, UNLABELED, test_size, labels=False)
    result = []
    with torch.inference_mode():
        for batch, _, _, sizes in DataLoader(dataset, batch_size=4, collate_fn=collate_whole):
            for logits, size in zip(arm.logits(batch), sizes):
                (rows, columns), _ = covering(size, test_size, logits.shape[1:])
                classes = classify(logits[:, :rows, :columns], size, test_size, logits.shape[1:])
                result.append(classes.numpy().astype(np.uint8))
    return result


def panel_columns(run, data, summary, row, count):
    """The panel as (titles, columns); a column is a list of (H, W, 3) uint8 RGB pictures, one an image."""
    store = store_of(run, row)
    manifest = store.read_manifest()
    test_size = tuple(manifest["test_size"])
    names = evenly_spaced(names_of(store, data), count)
    colors = np.array(palette_bytes(data.spec.palette), np.uint8).reshape(256, 3)
    after = [store.read_pseudo_label(name)[0] for name in names]
    pictures = [data.picture(name, test_size) for name in names]
    truths = [data.truth(name, test_size) for name in names]
    columns = {"image": pictures}
    if any(truth is not None for truth in truths):  # unlabelled images of one's own have none
        columns["truth"] = [np.full_like(label, 255) if truth is None else truth for truth, label in zip(truths, after)]
    made = f"pseudo label\nround {row['round']}, arm {row['arm']}, ratio {manifest['rules']['ratio']:g}"
    if manifest["previous"]:
        columns[f"{made}\nbefore PLE"] = [before_enhancement(store, manifest, name)
                                          for name, label in zip(names, after)]
    columns[made + ("\nafter PLE" if manifest["previous"] else "")] = after
    for title, end in (("prediction\nafter the last round", summary["final"] and summary["final"]["best_stage"]),
                       ("prediction\nsupervised alone", summary["baseline"] and summary["baseline"]["stage"])):
        checkpoint = Path(run) / f"{end}.pt"
        if end and checkpoint.is_file():
            columns[f"{title}\n{end}"] = predictions(checkpoint, data, names, test_size)
    return list(columns), [[part if part.ndim == 3 else colors[part] for part in column] for column in columns.values()]


def write_panel(path, titles, columns, spec, ignored=True):
    """Draw the columns side by side with their titles above and the colours of classes (and of no label) below."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    wide = max(picture.shape[1] / picture.shape[0] for picture in columns[0])
    rows = len(columns[0])
    legend_rows = -(-(spec.num_classes + 1) // 10)
    figure, axes = pyplot.subplots(rows, len(columns), squeeze=False, layout="constrained",
                                   figsize=(1.75 * wide * len(columns), 1.75 * rows + 0.6 + 0.25 * legend_rows))
    for column, (title, pictures) in enumerate(zip(titles, columns)):
        axes[0, column].set_title(title, fontsize=7)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].axis("off")
    patches = [Patch(facecolor=np.array(color) / 255, edgecolor="grey", label=name)
               for name, color in zip((*spec.class_names, *["ignored"] * ignored), (*spec.palette, UNLABELLED))]
    figure.legend(handles=patches, loc="outside lower center", ncols=10, fontsize=7, frameon=False)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"the panel {path} cannot be written: {error}") from error
    finally:
        pyplot.close(figure)


# --- command line -----------------------------------------------------------------------------------------------------


@reports_user_errors
def main(arguments=None):
    """Print the tables of the given runs and write summary.json and the panel of each."""
    args = _parser().parse_args(arguments)
    if args.out and len(args.run) > 1:
        raise UserError("--out names one file, but several runs were given; leave it out")
    if min(args.images, args.sample) < 0:
        raise UserError("--images and --sample are numbers of images, 0 or more")
    summaries = []
    for run in map(Path, args.run):
        data = RunData(find_stages(run)[0], args.dataset, args.data_root)
        if data.note:
            print(f"note: {data.note}; without it there is neither accuracy nor panel", file=sys.stderr)
        summary = complete(summarize(run, args.exp), run, data, args.sample)
        summaries.append(summary)
        space = "\n\n" if args.markdown else "\n"  # a Markdown table stands alone
        print(run, formatted(table_of(summary), args.markdown), outcome_text(summary), sep=space)
        write_json(run / "summary.json", summary)
        row = panel_labelling(summary)
        if args.images and row and data.root is not None:
            path = Path(args.out or run / "panel.png")
            write_panel(path, *panel_columns(run, data, summary, row, args.images), data.spec)
            print(f"panel: {path}")
        print()
    if len(summaries) > 1:
        print(formatted(table_of_runs(summaries), args.markdown))


def _parser():
    parser = OneLineParser(prog="python -m tools.summarize", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", metavar="RUN", help="output folder of a launcher, such as runs/demo")
    parser.add_argument("--exp", metavar="NAME", help="experiment, where the folder holds several")
    parser.add_argument("--dataset", metavar="NAME", help="dataset or YAML spec (default: the run's)")
    parser.add_argument("--data-root", metavar="DIR", help="the dataset's folder (default: the run's)")
    parser.add_argument("--out", metavar="FILE.png", help="where the panel goes (default: panel.png in the run)")
    parser.add_argument("--images", type=int, default=6, metavar="N", help="rows of the panel; 0: no panel (6)")
    parser.add_argument("--sample", type=int, default=400, metavar="N",
                        help="images a labelling compared with the truth, evenly spaced; 0: all (400)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    return parser


if __name__ == "__main__":
    main()
