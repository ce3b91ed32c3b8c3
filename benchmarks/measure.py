"""How the benchmarks measure and report: interleaved runs, their medians, one JSON file and one table a topic."""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

# One thread unless asked otherwise, set before the libraries load: ratios on a shared machine mean little with more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import PIL  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402

from utils.errors import UserError  # noqa: E402
from utils.files import write_text  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def parser(description, camvid=False, trained=False):
    """The options that all benchmarks share; ``camvid`` and ``trained`` add those for real images and networks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller sets; not for the tables")
    parser.add_argument("--work", default="/tmp/dmt-benchmarks", help="generated data (default: %(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the JSON files (default: %(default)s)")
    if camvid or trained:
        parser.add_argument("--camvid-root", default=os.environ.get("CAMVID_ROOT"),
                            help="CamVid in VOC layout (default: $CAMVID_ROOT; none: those rows are left out)")
    if trained:
        parser.add_argument("--checkpoints", nargs=2, metavar=("PREVIOUS", "CURRENT"),
                            help="two checkpoints of one arm on CamVid, of consecutive rounds (none: no real images)")
    return parser


def gpu_parser(description):
    """``parser`` for what is to be measured on a GPU, within the minutes that one is lent for."""
    gpu = parser(description)
    gpu.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --quick (default: %(default)s)")
    gpu.add_argument("--minutes", type=float, default=9, help="begin nothing that will not end by then (9)")
    if os.environ.get("OUT"):
        gpu.set_defaults(results=os.environ["OUT"])
    return gpu


def need_gpu(options):
    """Raise ``UserError`` where ``options.device`` is a GPU and there is none."""
    if not options.device.startswith("cuda") and not options.quick:
        raise UserError(f"--device {options.device}: at full size this would take hours; add --quick")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --quick --device cpu tries the paths of this benchmark on a CPU")


def arguments(description, camvid=False, trained=False):
    """Parse the options of ``parser`` and set the threads."""
    return parsed(parser(description, camvid, trained))


def parsed(parser):
    """Parse the options of an ``ArgumentParser`` and set the threads."""
    options = parser.parse_args()
    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    cv2.setNumThreads(threads)
    return options


def interleaved(functions, repeats, warmup=1, clock=time.process_time):
    """Seconds of every function in ``functions`` ({name: callable}) in ``repeats`` rounds, as {name: [seconds]}.

    Each round calls every function once, in turns that alternate between forwards and backwards, so that a load that
    comes and goes meets all of them. The clock counts the processor time of this process, all threads together, so
    that waiting for other processes does not count; the files are in the page cache after the warm-up.
    """
    seconds = {name: [] for name in functions}
    for number in range(-warmup, repeats):
        order = list(functions.items())
        for name, function in order if number % 2 else reversed(order):
            start = clock()
            function()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def ratio(slow, fast):
    """How many times faster: the median over the rounds of ``slow`` / ``fast``, two lists of seconds."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def row(what, unit, plain, ours, *, gain=None, floor=None, floor_is="", target=None, note=""):
    """One line of a table.

    ``plain`` and ``ours`` are medians in ``unit``; ``gain`` is how many times better this software is; ``floor`` is
    what no implementation could undercut (``floor_is`` says why); ``target`` is the gain it was to reach, or a pair
    ("<=", limit) or (">=", limit) that ``ours`` was to keep.
    """
    if target is None:
        met = None
    elif isinstance(target, tuple):
        met = ours <= target[1] if target[0] == "<=" else ours >= target[1]
    else:
        met = gain >= target
    return {"what": what, "unit": unit, "plain": plain, "ours": ours, "gain": gain, "floor": floor,
            "floor_is": floor_is, "target": list(target) if isinstance(target, tuple) else target, "met": met,
            "note": note}


def report(topic, rows, options, settings=None, **more):
    """Print the table of ``rows`` and write ``topic``.json with machine, versions and commit; ``more`` goes along."""
    path = write(topic, rows, options, settings, **more)
    print(table(rows))
    print(f"\n{path}")


def write(topic, rows, options, settings=None, **more):
    """Write ``topic``.json as ``report`` does, and print nothing. Returns its path."""
    result = {"topic": topic, "command": _command(),
              "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
              "commit": _commit(), "machine": machine(), "versions": versions(), "quick": options.quick,
              "settings": settings or {}, "rows": rows, **more}
    path = Path(options.results) / f"{topic}.json"
    write_text(path, json.dumps(result, indent=1, sort_keys=True) + "\n")
    return path


def _command():
    """How this benchmark was started; folders of this machine are left out."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word in ("--work", "--results", "--lists", "--camvid-root"):
            next(words, None)
        elif not word.startswith(("--work=", "--results=", "--lists=", "--camvid-root=", "/")):
            kept.append(word)
    return " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *kept])


def save(topic, figures, folder=RESULTS):
    """Write ``figures`` (a dict) of a benchmark that compares nothing to ``topic``.json, with machine and versions."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"topic": topic, "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
              "commit": _commit(), "machine": machine(), "versions": versions(), **figures}
    (folder / f"{topic}.json").write_text(json.dumps(result, indent=2) + "\n")


def table(rows):
    """The rows as a Markdown table."""
    lines = ["| what | plain | this software | gain | at least | floor | from the floor |",
             "|---|--:|--:|--:|--:|--:|--:|"]
    for line in rows:
        unit = line["unit"]
        target = line["target"]
        if isinstance(target, list):
            target = f"{target[0]} {number(target[1])} {unit}".strip()
        elif target is not None:
            target = f"{number(target)} x"
        mark = {True: "", False: " **missed**", None: ""}[line["met"]]
        floor = distance = ""
        if line["floor"] is not None:
            floor = f"{number(line['floor'])} ({line['floor_is']})"
            faster_is_more = unit.endswith("/s")
            above = line["floor"] / line["ours"] if faster_is_more else line["ours"] / line["floor"]
            distance = f"{number(above)} x"
        gain = f"{line['gain']:.2f} x" if line["gain"] is not None else ""
        plain = "" if line["plain"] is None else number(line["plain"])
        cells = [line["what"] + (f" ({unit})" if unit else ""), plain, number(line["ours"]), gain,
                 (target or "") + mark, floor, distance]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {line['what']}: {line['note']}" for line in rows if line["note"]]
    return "\n".join(lines + ([""] + notes if notes else []))


def number(value):
    """Three significant digits, whole numbers whole."""
    if not np.isfinite(value):
        return str(value)
    if isinstance(value, int) or value == int(value) and abs(value) >= 100:
        return f"{int(value)}"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:.{min(digits, 6)}f}"


def machine():
    """What the figures depend on: processor, cores, threads used, system."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.system(),
            "load": round(os.getloadavg()[0], 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def versions():
    """Versions of what is measured."""
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "opencv": cv2.__version__, "numpy": np.__version__, "pillow": PIL.__version__}


def peak_memory():
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _commit():
    """What was measured; a copy without .git says it by the environment variable COMMIT."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
        return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")
    except OSError:
        return "unknown"
