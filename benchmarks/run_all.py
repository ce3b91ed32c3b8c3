"""Run every benchmark and write its table into docs/performance.md, whose other text is left alone."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import measure

DOCUMENT = measure.REPOSITORY / "docs" / "performance.md"
BEGIN, END = "<!-- tables: begin (python -m benchmarks.run_all writes them) -->", "<!-- tables: end -->"
TOPICS = {  # script -> title; in the order of the document
    "loading": "Training images", "labeling": "Labelling", "disk": "Disk", "thresholds": "Thresholds",
    "loss": "Mutual loss", "validation": "Validation", "start": "Start", "growth": "Growth with the number of images"}
GPU_TOPICS = {  # benchmarks/gpu_session.sh runs these; some are from before what they led to
    "gpu-before": "One GPU, as it was at first", "gpu-correct": "One GPU: is it right?",
    "gpu-search": "One GPU: fresh processes", "gpu-speed": "One GPU: speed", "gpu": "One GPU", "gpu-compiled": "One GPU, torch.compile",
    "voc_chain": "A whole chain on one GPU"}
NEEDS_TRAINED = ("labeling", "disk")


def main():
    """Run the topics (all, or those of --only), then write the tables of all results that are there."""
    parser = measure.parser(__doc__, camvid=True, trained=True)
    parser.add_argument("--only", nargs="*", choices=sorted(TOPICS), help="run only these topics")
    parser.add_argument("--tables", action="store_true", help="run nothing: only write the tables")
    options = parser.parse_args()
    failed = []
    for topic in () if options.tables else options.only or TOPICS:
        print(f"\n== {topic}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{topic}", *_arguments(topic, options)],
                          cwd=measure.REPOSITORY).returncode:
            failed.append(topic)
    if not options.quick:
        write_tables(Path(options.results), DOCUMENT)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _arguments(topic, options):
    words = ["--work", options.work, "--results", options.results] + (["--quick"] if options.quick else [])
    if topic in (*NEEDS_TRAINED, "loading") and options.camvid_root:
        words += ["--camvid-root", options.camvid_root]
    if topic in NEEDS_TRAINED and options.checkpoints:
        words += ["--checkpoints", *options.checkpoints]
    return words


def write_tables(folder, document):
    """Replace the part of ``document`` between the markers by the tables of the JSON files in ``folder``."""
    sections = []
    for topic, title in {**TOPICS, **GPU_TOPICS}.items():
        path = folder / f"{topic}.json"
        if path.exists():
            sections.append(section(title, topic, json.loads(path.read_text())))
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(before + "\n\n".join([BEGIN, *sections, END]) + after)


def section(title, topic, result):
    """Title, table, plot, and one line that says where the figures come from."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    settings = "; ".join(f"{name} {' x '.join(map(str, value)) if isinstance(value, list) else value}"
                         for name, value in sorted(result["settings"].items()))
    plot = "\n\n![time and memory over the number of images](growth.png)" if topic == "growth" else ""
    gpu = f"{machine['gpu']}, " if topic in GPU_TOPICS else ""
    command = result.get("command") or f"python -m benchmarks.{topic}"
    origin = (f"`{command}`, {result['date'][:10]}, commit {result['commit']}, "
              f"{gpu}{machine['cpu']} with {machine['cores']} cores, {machine['threads']} thread(s), load {machine['load']}; {versions}. "
              f"{settings}.")
    return f"### {title}\n\n{measure.table(result['rows'])}{plot}\n\n{origin}"


if __name__ == "__main__":
    main()
