#!/usr/bin/env bash
# Every test. Sets up .venv on the first call; arguments go to pytest (./test.sh -k loss).
set -euo pipefail
cd "$(dirname "$0")"
. scripts/setup.sh
# A file of tests stays in one process, since its tests share what they prepare.
exec "$PYTHON" -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
