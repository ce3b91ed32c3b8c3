#!/usr/bin/env bash
# Every test. Sets up .venv on the first call; arguments go to pytest (./test.sh -k loss).
set -euo pipefail
cd "$(dirname "$0")"
. scripts/setup.sh
exec "$PYTHON" -m pytest "$@"
