"""What the benchmarks share: the clock, medians of interleaved runs, and one JSON file a benchmark."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

from utils.files import write_text

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def compare(plain, ours, repeats):
    """{"plain": median seconds, "ours": the same, "ratio": median over the rounds of plain / ours} of two functions.

    Each of ``repeats`` rounds calls both, in an order that alternates, after one that does not count: a load that comes and
    goes meets both. Seconds are the processor time of this process, all threads, so waiting for others does not count.
    """
    functions, seconds = {"plain": plain, "ours": ours}, {"plain": [], "ours": []}
    for number in range(-1, repeats):
        for name in sorted(functions, reverse=number % 2):
            began = time.process_time()
            functions[name]()
            if number >= 0:
                seconds[name].append(time.process_time() - began)
    ratio = statistics.median(one / other for one, other in zip(seconds["plain"], seconds["ours"]))
    return {**{name: round(statistics.median(values), 5) for name, values in seconds.items()}, "ratio": round(ratio, 2)}


def save(topic, figures, folder=RESULTS):
    """Write ``figures`` (a dict) to ``topic``.json with date, commit, machine and versions; returns its path."""
    path = Path(folder) / f"{topic}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"topic": topic, "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
              "commit": _commit(), "machine": _machine(), "versions": _versions(), **figures}
    write_text(path, json.dumps(result, indent=1) + "\n")
    return path


def _machine():
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "system": platform.system(), "load": round(os.getloadavg()[0], 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def _versions():
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "opencv": cv2.__version__, "numpy": np.__version__}


def _commit():
    """What is measured; a copy without .git says it by the environment variable COMMIT."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")
