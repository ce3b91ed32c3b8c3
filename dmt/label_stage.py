"""A labelling as a stage: how it begins, is skipped when it is finished, goes on after an interruption, and ends."""

import contextlib
import os
import signal
import sys
import time

from data import images
from data.lists import names_digest
from data.store import PseudoLabelStore
from dmt.labeling import BATCH, label
from utils.errors import UserError
from utils.files import difference, locked, sha256, write_json


def run(setting, folder, checkpoint, old, rules, redo=False):
    """Label the unlabelled images with ``checkpoint`` into ``folder``, with PLE if there is an ``old`` one.

    ``setting`` is the ``dmt.session.Setting``, ``rules`` are the ``dmt.labeling.LabelingRules``.
    """
    data, machine, began = setting.data, setting.machine, time.monotonic()
    processes, samples = machine.processes, data.unlabeled(*setting.split)
    processes.first(images.check_present, samples)
    if rules.previous_statistics == BATCH and max(data.spec.test_size) <= setting.network.traits.output_stride:
        raise UserError("--previous-statistics batch: this --test-size leaves one feature an image, but batch "
                        "normalization needs two; give a larger one")
    store = PseudoLabelStore(folder, data.spec.palette)
    source = {"dataset": data.spec.name, "split": setting.split[0], "split_id": setting.split[1],
              "test_size": list(data.spec.test_size), "network": setting.network.identity(),
              "names_sha256": names_digest(samples), "batch_size": machine.batch_size}
    earlier = old and {**source, "checkpoint_sha256": sha256(old)}
    source["checkpoint_sha256"] = sha256(checkpoint)
    expected = {**source, "rules": rules.values(), "previous": old and old.name,
                "previous_sha256": old and earlier["checkpoint_sha256"]}
    processes.agree(expected, f"the numbers, lists or files of the labelling in {folder}")

    lock = locked(folder / ".lock", f"the folder of pseudo labels {folder}")
    with lock if processes.is_first else contextlib.nullcontext():
        shares = None if redo else processes.first(_finished_labeling, store, expected, samples)
        done = shares is not None
        if not done:
            processes.first(store.begin, source, redo)
            previous = old and (old, processes.first(_store_of, folder.parent, earlier))
            if processes.size == 1:  # several are ended by torchrun
                signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
            try:
                thresholds, shares = label(setting, samples, store, checkpoint, previous, rules)
            except (KeyboardInterrupt, SystemExit):
                print(f"labelling stopped; the predictions so far are kept in {folder}, the same command goes on with "
                      "them", file=sys.stderr)
                raise
            os.sync()  # all is on the disks when the manifest says so
            processes.wait()
            manifest = {**expected, "checkpoint": checkpoint.name, "images": len(samples), "labeled_share": shares,
                        "thresholds": thresholds.tolist()}
            processes.first(write_json, folder / "timing.json", {  # the manifest has to stay the same bytes
                "seconds": round(time.monotonic() - began, 2), "images": len(samples), **machine.peak_memory()})
            processes.first(store.write_manifest, manifest)
    ple = f", {100 * shares['after']:.2f} % after PLE ({100 * shares['changed']:.2f} % changed)" if old else ""
    print(f"{'already labelled:' if done else 'labelled'} {len(samples)} images in {folder}: "
          f"{100 * shares['before']:.2f} % of the pixels{ple}")


def _finished_labeling(store, expected, samples):
    """The shares of labelled pixels when ``store`` holds the finished labelling ``expected``, else None.

    Says on standard output why a labelling that had finished is made anew, or which of its files are damaged.
    """
    if not (store.folder / "manifest.json").is_file():
        return None
    try:
        manifest = store.read_manifest()
        reason = difference({key: manifest.get(key) for key in expected}, expected)
        damaged = [] if reason else store.damaged([sample.name for sample in samples])
        if damaged:
            reason = f"{damaged[0]} is missing or damaged" + (f" and {len(damaged) - 1} more" if damaged[1:] else "")
        if reason is None:
            return {name: manifest["labeled_share"][name] for name in ("before", "after", "changed")}
    except UserError as error:
        reason = str(error)
    except (KeyError, TypeError):
        reason = f"{store.folder / 'manifest.json'} is damaged"
    print(f"{store.folder}: labelled anew, since {reason}", flush=True)
    return None


def _store_of(folder, source):
    """The store beneath ``folder`` whose logits come from ``source``, or None."""
    for path in sorted(folder.glob("*/logits.json")):
        store = PseudoLabelStore(path.parent)
        if store.has_logits_of(source):
            return store
    return None
