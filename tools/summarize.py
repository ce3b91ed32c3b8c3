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
import re
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from data import images, transforms
from data.lists import unlabeled_names
from data.specs import UNLABELED, load_spec, resolve_root
from data.store import PseudoLabelStore
from utils.errors import OneLineParser, UserError, reports_user_errors
from utils.files import read_json, write_json
from utils.options import parse_options

_STAGE = re.compile(r"(?P<exp>.+)__p(?P<round>\d+)--(?P<arm>[^/]+)")
_THREADS = 2
MARGIN = 6  # pixels between the images of the panel


# --- what a run folder holds ------------------------------------------------------------------------------------------


def find_stages(run):
    """The finished stages of the run folder, as dicts (name, round, arm, miou, steps), by round and arm.

    Stages with names of another form (the SBD oracle) have round and arm None and come last.
    """
    stages = []
    for path in sorted(Path(run).glob("*/result.json")):
        name, result = path.parent.name, read_json(path)
        if not isinstance(result, dict) or not isinstance(result.get("miou"), (int, float)):
            raise UserError(f"{path} holds no mIoU; train that stage again")
        match = _STAGE.fullmatch(name)
        stages.append({"name": name, "round": int(match["round"]) if match else None,
                       "arm": match["arm"] if match else None, "miou": result["miou"], "steps": _last_step(path.parent)})
    if not stages:
        raise UserError(f"{run} holds no finished stage; give the output folder of a launcher, such as runs/NAME")
    return sorted(stages, key=lambda stage: (stage["round"] is None, stage["round"] or 0, stage["name"]))


def _last_step(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    steps = [int(found[1]) for line in lines if (found := re.search(r'"step": (\d+)', line))]
    return max(steps, default=None)


def _options_of(path):
    """The options of the stage's command line, which its environment.json holds; the default ones without that file."""
    command = read_json(path)["command"][1:] if path.is_file() else []
    return parse_options(command)


class RunData:
    """The dataset of a run, as far as it is there: the spec, and its root or None.

    Both come from the command line of the run's first stage unless they are given.
    """

    def __init__(self, run, first_stage, dataset=None, data_root=None):
        options = _options_of(Path(run) / first_stage / "environment.json")
        spec = load_spec(dataset or options.dataset)
        lists = options.lists_dir and str(Path(options.lists_dir).expanduser().absolute())
        self.spec = replace(spec, lists=lists) if lists else spec
        try:
            self.root = resolve_root(spec, data_root or options.data_root)
        except UserError as error:
            if data_root:
                raise
            self.root = None
            print(f"note: {error}; without it there is neither accuracy nor panel", file=sys.stderr)

    def names(self, store):
        """The unlabelled images whose pseudo labels ``store`` holds, checked to be all there."""
        manifest = store.read_manifest()
        names = unlabeled_names(self.spec, self.root, manifest["split"], manifest["split_id"])
        store.check_split(self.spec.name, manifest["split"], manifest["split_id"], names)
        store.check_files(names)
        return names

    def truth(self, name, test_size):
        """The mask (H, W) uint8 of an unlabelled image in the geometry of its pseudo label, or None without one."""
        path = self.spec.label_path(self.root, name, UNLABELED)
        if path is None or not path.is_file():
            return None
        mask = images.read_mask(path, self.spec)
        return transforms.resize_nearest(mask, test_size) if self.spec.test_by == "resize" else mask


# --- pseudo labels ----------------------------------------------------------------------------------------------------


def before_enhancement(store, manifest, name):
    """The pseudo label (H, W) uint8 by thresholds alone, decided anew from the stored logits of image ``name``."""
    from dmt.labeling import LabelingRules, decide, stored_prediction
    from dmt.thresholds import codes_of_thresholds

    current = stored_prediction(store, name, tuple(manifest["test_size"]))
    codes = codes_of_thresholds(np.asarray(manifest["thresholds"], np.float32))
    return decide(current, None, codes, LabelingRules(**manifest["rules"]))[2]


def accuracy(store, data, names):
    """Right shares {"before", "after"} of the pseudo labels of ``names``; None where nothing can be compared."""
    manifest = store.read_manifest()

    def one(name):
        truth = data.truth(name, tuple(manifest["test_size"]))
        after, _ = store.read_pseudo_label(name)
        if truth is None:
            return np.zeros(4, np.int64)
        if truth.shape != after.shape:
            raise UserError(f"{store.label_path(name)} and the mask of {name} differ in size; give the dataset that "
                            "the run was made with (--dataset, --data-root)")
        before = before_enhancement(store, manifest, name) if manifest["previous"] else after
        counts = []
        for labels in (before, after):
            counted = (labels != 255) & (truth != 255)
            counts += [np.count_nonzero(counted & (labels == truth)), np.count_nonzero(counted)]
        return np.array(counts, np.int64)

    with ThreadPoolExecutor(_THREADS) as pool:
        before_right, before, after_right, after = sum(pool.map(one, names)).tolist()
    return {"before": before_right / before if before else None, "after": after_right / after if after else None}


def evenly_spaced(names, count):
    """``count`` of the names at even distances; all of them when there are no more or ``count`` is 0."""
    if not count or count >= len(names):
        return list(names)
    return [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]


def describe_pseudo_labels(store, data, sample):
    """What the table says about a store: ratio, whether PLE was on, labelled shares, and right shares."""
    manifest = store.read_manifest()
    shares = manifest["labeled_share"]
    right = {"before": None, "after": None}
    if data.root is not None and not store.pruned():
        right = accuracy(store, data, evenly_spaced(data.names(store), sample))
    return {"ratio": manifest["rules"]["ratio"], "enhanced": bool(manifest["previous"]), "pruned": store.pruned(),
            "labeled_before": shares["before"], "labeled_after": shares["after"], "changed": shares["changed"],
            "right_before": right["before"], "right_after": right["after"]}


def summarize(run, data, stages, sample):
    """Everything the table shows, as plain values: the content of summary.json."""
    rows = []
    for stage in stages:
        folder = Path(run) / "pseudo" / stage["name"]
        whole = (folder / "manifest.json").is_file()
        rows.append({**stage, "pseudo_labels":
                     describe_pseudo_labels(PseudoLabelStore(folder), data, sample) if whole else None})
    return {"run": Path(run).name, "dataset": data.spec.name, "images_compared": sample or "all",
            "commit": _commit(run, stages), "stages": rows, **_outcome(rows)}


def _commit(run, stages):
    path = Path(run) / stages[-1]["name"] / "environment.json"
    return read_json(path).get("commit") if path.is_file() else None


def _outcome(rows):
    """The last round's arms, and the supervised baseline: an arm with a round 0 alone, in a run that has rounds."""
    named = [row for row in rows if row["round"] is not None]
    last = max((row["round"] for row in named), default=0)
    if not last:
        return {"rounds": 0, "final": None, "baseline": None, "gain": None}
    final = [row for row in named if row["round"] == last]
    arms = {row["arm"] for row in named if row["round"]}
    baseline = next((row for row in named if row["arm"] not in arms), None)
    mean = statistics.mean(row["miou"] for row in final)
    best = max(final, key=lambda row: row["miou"])
    steps = {arm: sum(row["steps"] or 0 for row in named if row["arm"] == arm) for arm in sorted(arms)}
    return {"rounds": last,
            "final": {"mean": mean, "best": best["miou"], "best_stage": best["name"], "steps": steps},
            "baseline": baseline and {"miou": baseline["miou"], "stage": baseline["name"], "steps": baseline["steps"]},
            "gain": mean - baseline["miou"] if baseline else None}


# --- tables -----------------------------------------------------------------------------------------------------------

_HEAD = ("round", "arm", "steps", "mIoU", "ratio", "labelled: before PLE", "after", "right: before PLE", "after")


def table_of(summary):
    """The rows of one run as texts. The pseudo labels in a row are those that the row's checkpoint made."""
    rows = [_HEAD]
    for stage in summary["stages"]:
        row = ["-" if stage["round"] is None else str(stage["round"]), stage["arm"] or stage["name"],
               str(stage["steps"] or "-"), _percent(stage["miou"])]
        labels = stage["pseudo_labels"]
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


def panel_store(run, summary):
    """The stage whose pseudo labels the panel shows: the last with PLE and a ratio below 1, else the last of all."""
    made = [stage for stage in summary["stages"] if stage["pseudo_labels"] and not stage["pseudo_labels"]["pruned"]]
    chosen = [[stage for stage in made if stage["pseudo_labels"]["enhanced"] and stage["pseudo_labels"]["ratio"] < 1],
              [stage for stage in made if stage["pseudo_labels"]["enhanced"]], made]
    return next((stages[-1] for stages in chosen if stages), None)


def predictions(checkpoint, data, names, test_size):
    """Classes (H, W) uint8 that the network in the file ``checkpoint`` predicts for each training image of ``names``."""
    import torch
    from torch.utils.data import DataLoader
    from data.datasets import WholeImages, collate_whole
    from dmt.prediction import classify, covering
    from models import deeplab_v2
    from models.input_format import input_format
    from utils.checkpoints import load, load_model

    made_with = load(checkpoint)
    model = deeplab_v2(made_with["num_classes"], made_with["backbone"], made_with["aspp_branches"])
    load_model(model, checkpoint)
    model.eval()
    form = input_format(made_with["input_format"] == "coco")
    dataset = WholeImages(data.spec, data.root, names, "train", test_size, labels=False)
    result = []
    with torch.inference_mode():
        for batch, _, _, sizes in DataLoader(dataset, batch_size=4, collate_fn=collate_whole):
            for logits, size in zip(model(form.normalize(batch)), sizes):
                (rows, columns), _ = covering(size, test_size, logits.shape[1:])
                classes = classify(logits[:, :rows, :columns], size, test_size, logits.shape[1:])
                result.append(classes.numpy().astype(np.uint8))
    return result


def panel_columns(run, data, summary, stage, count):
    """The panel as (titles, columns); a column is a list of (H, W, 3) uint8 RGB pictures, one an image."""
    store = PseudoLabelStore(Path(run) / "pseudo" / stage["name"])
    manifest = store.read_manifest()
    test_size = tuple(manifest["test_size"])
    names = evenly_spaced(data.names(store), count)
    colors = np.full((256, 3), (224, 224, 192), np.uint8)
    colors[: data.spec.num_classes] = data.spec.palette
    after = [store.read_pseudo_label(name)[0] for name in names]
    pictures = [images.read_image(data.spec.image_path(data.root, name, UNLABELED))[..., ::-1] for name in names]
    if data.spec.test_by == "resize":
        pictures = [transforms.resize_image(picture, test_size) for picture in pictures]
    truths = [data.truth(name, test_size) for name in names]
    columns = {"image": pictures,
               "truth": [np.full_like(label, 255) if truth is None else truth for truth, label in zip(truths, after)]}
    made = f"pseudo label\nround {stage['round']}, arm {stage['arm']}, ratio {manifest['rules']['ratio']:g}"
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


def write_panel(path, titles, columns, spec):
    """Draw the columns side by side with their titles above and the classes' colours below."""
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
               for name, color in zip((*spec.class_names, "ignored"), (*spec.palette, (224, 224, 192)))]
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
        if not run.is_dir():
            raise UserError(f"the run folder {run} is missing; give the output folder of a launcher")
        stages = find_stages(run)
        data = RunData(run, stages[0]["name"], args.dataset, args.data_root)
        summary = summarize(run, data, stages, args.sample)
        summaries.append(summary)
        space = "\n\n" if args.markdown else "\n"  # a Markdown table stands alone
        print(run, formatted(table_of(summary), args.markdown), outcome_text(summary), sep=space)
        write_json(run / "summary.json", summary)
        stage = panel_store(run, summary)
        if args.images and stage and data.root is not None:
            path = Path(args.out or run / "panel.png")
            write_panel(path, *panel_columns(run, data, summary, stage, args.images), data.spec)
            print(f"panel: {path}")
        print()
    if len(summaries) > 1:
        print(formatted(table_of_runs(summaries), args.markdown))


def _parser():
    parser = OneLineParser(prog="python -m tools.summarize", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", metavar="RUN", help="output folder of a launcher, such as runs/demo")
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
