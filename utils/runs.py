"""A run is a folder: checkpoints, and per stage its configuration, environment, metrics and TensorBoard events."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from utils.errors import UserError
from utils.files import make_folder, replacing, write_json, write_text


class Stage:
    """The files of one stage NAME in the output folder.

    ``NAME.pt`` is its checkpoint, ``NAME/`` holds the rest, and ``log.txt`` gets one line a finished stage.
    """

    def __init__(self, output_dir, name):
        if not name or Path(name).name != name or name.startswith("."):
            raise UserError(f"--exp-name {name!r}: give a plain name without slashes that does not start with a dot")
        self.output_dir = make_folder(output_dir)
        self.name = name
        self.folder = make_folder(self.output_dir / name)
        self.checkpoint = self.output_dir / f"{name}.pt"
        self.best = self.folder / "best.pt"
        self.state = self.folder / "state.pt"
        self._metrics = self.folder / "metrics.jsonl"

    def write_config(self, options):
        """Write the stage's configuration (a dict of plain values) and environment."""
        write_json(self.folder / "config.json", options)
        write_json(self.folder / "environment.json", environment())

    def start_metrics(self, before_step=0):
        """Begin the metrics file anew, keeping the lines of steps up to ``before_step`` (when a training goes on)."""
        kept = []
        if before_step and self._metrics.is_file():
            for line in self._metrics.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line).get("step", 0) <= before_step:
                        kept.append(line + "\n")
                except ValueError:
                    break  # cut off in the middle of a line: what follows was never written
        self._metrics.write_text("".join(kept), encoding="utf-8")

    def log_metrics(self, **values):
        """Append one JSON line to metrics.jsonl."""
        self._append(self._metrics, json.dumps({"time": round(time.time(), 3), **values}))

    def finish(self, miou, save=True):
        """Make the best snapshot the stage's checkpoint, and write the line ``NAME: mIoU`` (in percent) to log.txt."""
        if save:
            with replacing(self.checkpoint) as temporary:
                shutil.copyfile(self.best, temporary)
        log = self.output_dir / "log.txt"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        lines = [line for line in lines if not line.startswith(f"{self.name}: ")]  # of an earlier run of this stage
        write_text(log, "\n".join([*lines, f"{self.name}: {100 * miou:.4f}", ""]))
        write_json(self.folder / "result.json", {"miou": miou, "checkpoint": self.checkpoint.name if save else None})
        for left_over in (self.best, self.state):
            left_over.unlink(missing_ok=True)

    def tensorboard(self, after_step=0):
        """A TensorBoard writer in the stage's folder; events after ``after_step`` are dropped."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, so not for --help
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=after_step or None)

    @staticmethod
    def _append(path, line):
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def environment():
    """What a result depends on besides the options: versions, machine, commit and command line."""
    import cv2
    import numpy
    import torch
    import torchvision

    return {
        "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        "numpy": numpy.__version__, "opencv": cv2.__version__, "platform": platform.platform(),
        "processors": os.cpu_count(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(), "command": sys.argv,
    }


def _commit():
    try:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
                              capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
