"""What the benchmarks share: medians of interleaved runs, and one JSON file a benchmark."""

import datetime
import json
import os
import re
import statistics
import time
from pathlib import Path

from utils.files import write_text
from utils.runs import environment

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def compare(plain, ours, repeats):
    """{"plain": median seconds, "ours": the same, "ratio": median over the rounds of plain / ours} of two functions.

    Each of ``repeats`` rounds calls both, in an order that alternates, after one that does not count: a load that comes
    and goes meets both. Seconds are the processor time of this process, all threads: waiting for others does not count.
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
    """Write ``figures`` (a dict) to ``topic``.json with date, commit, machine and versions; returns its path.

    A copy without .git says its commit by the environment variable COMMIT.
    """
    path, made = Path(folder) / f"{topic}.json", environment()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    result = {"topic": topic, "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
              **{key: made[key] for key in made if key not in ("command", "directory")},
              "commit": os.environ.get("COMMIT") or made["commit"], "cpu": cpu and cpu[1],
              "load": round(os.getloadavg()[0], 1), **figures}
    write_text(path, json.dumps(result, indent=1) + "\n")
    return path
