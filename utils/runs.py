"""A run is a folder: checkpoints, and per stage its configuration, environment and metrics."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy
import torch
import torchvision

from utils import checkpoints
from utils.errors import UserError
from utils.files import (difference, locked, make_folder, read_json, remove_left_overs, replacing, sha256, write_json,
                         write_text)

_CODE = ("main.py", "jobs", "dmt", "models", "data", "utils")  # what a result depends on


class Stage:
    """The files of one stage NAME in the output folder.

    ``NAME.pt`` is its checkpoint, ``NAME/`` holds the rest, and ``log.txt`` gets one line a finished stage. Used as a
    context, it makes the folders and keeps other processes from working on the same stage.
    """

    def __init__(self, output_dir, name):
        if not name or Path(name).name != name or name.startswith("."):
            raise UserError(f"--exp-name {name!r}: give a plain name without slashes that does not start with a dot")
        self.output_dir, self.name = Path(output_dir), name
        self.folder = self.output_dir / name
        self.checkpoint = self.output_dir / f"{name}.pt"
        self.state = self.folder / "state.pt"
        self._metrics = self.folder / "metrics.jsonl"

    def __enter__(self):
        make_folder(self.output_dir)
        make_folder(self.folder)
        self._lock = locked(self.folder / ".lock", f"the stage {self.name} in {self.output_dir}")
        self._lock.__enter__()
        remove_left_overs(self.folder)
        remove_left_overs(self.output_dir, self.name)
        return self

    def __exit__(self, *error):
        return self._lock.__exit__(*error)

    # --- finished, interrupted, or new ----------------------------------------------------------------------------

    def result(self, fingerprint):
        """The result of this stage when it finished with exactly this ``fingerprint`` and its checkpoint is whole.

        ``fingerprint`` is a dict of plain values: everything the result depends on. Otherwise returns None, and says
        on standard output why a stage that had finished is done anew.
        """
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        try:
            result = read_json(path)
            before, digest, *_ = (result[key] for key in (
                "fingerprint", "checkpoint_sha256", "miou", "start_miou", "step"))
            reason = difference(before, fingerprint) or _damage(self.checkpoint, digest)
        except UserError as error:
            reason = str(error)
        except (KeyError, TypeError):
            reason = f"{path} is damaged"
        if reason is None:
            self._close(result["miou"])
            return result
        print(f"{self.name}: done anew, since {reason}", flush=True)
        return None

    def interrupted_state(self, fingerprint):
        """The saved state of an interrupted training with this ``fingerprint``; None (saying why, if there is one)."""
        if not self.state.is_file():
            return None
        try:
            state = checkpoints.load(self.state)
            reason = difference(json.loads(state["fingerprint"]), fingerprint)
            if reason is None and state["best_step"]:
                reason = _damage(self.best(state["best_step"]), state["best_sha256"])
        except UserError as error:
            reason = str(error)
        if reason is None:
            return state
        print(f"{self.name}: begun anew, since {reason}", flush=True)
        return None

    def best(self, step):
        """Path of the best snapshot so far, taken at ``step``."""
        return self.folder / f"best-{step:08d}.pt"

    def save_state(self, state, best_step):
        """Write the training state, then drop the snapshots that it no longer refers to."""
        checkpoints.save(self.state, state)
        for path in self.folder.glob("best-*.pt"):
            if path != self.best(best_step):
                path.unlink()

    def finish(self, result, fingerprint, save=True):
        """Make the best snapshot the stage's checkpoint and write ``result`` (a dict with miou and step).

        log.txt gets the line ``NAME: mIoU`` in percent. After this the stage is skipped when it is started again.
        """
        if save:
            with replacing(self.checkpoint) as temporary:
                shutil.copyfile(self.best(result["step"]), temporary)
            write_json(self.folder / "result.json", {
                **result, "fingerprint": fingerprint, "checkpoint_sha256": sha256(self.checkpoint)})
        self._close(result["miou"], save)

    def _close(self, miou, saved=True):
        """What comes after result.json, and again when a finished stage is skipped: the line in log.txt, where others
        may write theirs, and no left-overs; those of an earlier start stay when a training is not ``saved``."""
        log, own = self.output_dir / "log.txt", f"{self.name}: {100 * miou:.4f}"
        with locked(self.output_dir / ".log.lock", "log.txt", wait=True):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
            kept = [own if line.startswith(f"{self.name}: ") else line for line in lines]
            if own not in kept:
                kept.append(own)
            if kept != lines:
                write_text(log, "\n".join([*kept, ""]))
        for left_over in (self.state, *self.folder.glob("best-*.pt")) if saved else ():
            left_over.unlink(missing_ok=True)

    # --- while it goes on -----------------------------------------------------------------------------------------

    def begin(self, config, fingerprint, save=True, anew=False):
        """The state from which an interrupted training goes on, or None; writes the configuration ``config`` (plain
        values) with the ``fingerprint``, and the environment, and begins the metrics file.

        Lines of steps up to that state stay, but for one that a kill has cut off. A result that the training will
        replace (not with ``save`` false) is gone from now on.
        """
        state = self.interrupted_state(fingerprint) if save and not anew else None
        after_step = state["step"] if state else 0
        if save:
            (self.folder / "result.json").unlink(missing_ok=True)
        write_json(self.folder / "config.json", {**config, "fingerprint": fingerprint})
        write_json(self.folder / "environment.json", environment())
        kept = []
        if after_step and self._metrics.is_file():
            for line in self._metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    if json.loads(line)["step"] <= after_step:
                        kept.append(line + "\n")
        write_text(self._metrics, "".join(kept))
        return state

    def log_metrics(self, values):
        """Append the dict ``values`` to metrics.jsonl, as one line of JSON."""
        try:
            with open(self._metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")
        except OSError as error:
            raise UserError(f"{self._metrics} cannot be written: {error.strerror or error}") from error


def _damage(path, digest):
    """In words, what is wrong with the file at ``path`` whose SHA-256 was ``digest``, or None."""
    return None if path.is_file() and sha256(path) == digest else f"{path} is missing or damaged"


def environment():
    """What a result depends on besides the options: versions, machine, commit and command line."""
    return {
        **software(), "numpy": numpy.__version__, "opencv": cv2.__version__, "platform": platform.platform(),
        "processors": os.cpu_count(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12"), "command": sys.argv, "directory": os.getcwd(),
    }


def software():
    """Versions of what computes: Python, torch, torchvision, and the commit that last changed this software's code.

    Other commits leave it as it is, and so do changes of other files: a stage that goes on after one ends with the same
    bytes. The commit is None outside of a git checkout, and ends in "-changed" where the code is not as committed.
    """
    commit = _git("log", "-1", "--format=%H", "--", *_CODE)
    changed = "-changed" if commit and _git("status", "--porcelain", "--untracked-files=no", "--", *_CODE) else ""
    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "torchvision": torchvision.__version__, "commit": commit and commit[:12] + changed}


def _git(*words):
    """What git prints for this software's own folder, or None when there is no git or nothing to say."""
    try:  # killed with its lock in the folder, it would leave the user a repository in which git does nothing
        return subprocess.run(["git", "--no-optional-locks", "-C", str(Path(__file__).parents[1]), *words],
                              capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def known_parts(output_dir, name):
    """In how many parts an earlier start of the stage ``name`` computed its batches, or None."""
    try:
        parts = read_json(Path(output_dir).expanduser() / name / "config.json")["accumulate"]
    except (UserError, KeyError, TypeError):
        return None
    return parts if isinstance(parts, int) and parts > 0 else None
