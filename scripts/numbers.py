"""What can be set in a launcher: its help, and the refusal of arguments that mean nothing to it. Needs no packages.

    python3 scripts/numbers.py LAUNCHER "POSITIONAL" "NAME ..." FILE ... -- WORD ...

A number is a line ``NAME=${NAME:-DEFAULT}  # MEANING`` in one of the FILEs, of which the launcher is the last; the
last comment before it that ends with a colon is its heading. POSITIONAL is the number that one WORD without a name is
for; the NAMEs are known, too.
"""

import difflib
import itertools
import re
import signal
import sys
from pathlib import Path

NUMBER = re.compile(r"(\w+)=\$\{\1:?-?(.*)\}(?:\s+#\s*(.*))?$")


def read_numbers(files):
    """{heading: {name: (default, meaning)}}; of a name that occurs again the first counts."""
    headings, seen = {"": {}}, set()
    for path in files:
        heading, lines = "", Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        for line in itertools.dropwhile(lambda line: line.startswith("#"), lines):
            found = NUMBER.match(line)
            if line.startswith("# ") and line.endswith(":"):
                heading = line[2:]
            elif found and found[1] not in seen:
                seen.add(found[1])
                headings.setdefault(heading, {})[found[1]] = found[2].replace("${root}", ""), found[3] or ""
    return headings


def print_help(launcher, headings):
    """The comment on top of the launcher, then every number with its default and its meaning."""
    lines = Path(launcher).read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    for line in itertools.takewhile(lambda line: line.startswith("#"), lines):
        print(re.sub("^# ?", "", line))
    print(f"\nNumbers, as in: {launcher} ep=1 DRY_RUN=1 (in the environment, too)")
    for heading, numbers in headings.items():
        if heading:
            print(f"\n{heading}")
        for name, (default, meaning) in numbers.items():
            print(f"  {f'{name}={default}':<34} {meaning}")


def main(launcher, positional, passed_on, *words):
    """Print help, or the line for the first word that is refused; returns the exit status."""
    words = list(words)
    files, words = words[: words.index("--")], words[words.index("--") + 1 :]
    headings = read_numbers(reversed(files))
    known = [*itertools.chain.from_iterable(headings.values()), *passed_on.split()]
    for word in words:
        name = word.split("=")[0]
        if word in ("-h", "--help"):
            print_help(launcher, headings)
            return 0
        if re.match("[A-Za-z_].*=", word, re.DOTALL):
            if name not in known:
                nearest, = difflib.get_close_matches(name, known, 1, 0)
                print(f"error: unknown number '{name}'; did you mean {nearest}? ({launcher} --help lists all)",
                      file=sys.stderr)
                return 2
        elif positional and not word.startswith("-"):
            positional = ""
        elif word != "--arms-parallel":
            print(f"error: unknown argument '{word}'; numbers are given as in {launcher} ep=1 (see {launcher} --help)",
                  file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # --help | head
    sys.exit(main(*sys.argv[1:]))
