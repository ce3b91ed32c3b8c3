#!/usr/bin/env bash
# Sourced by demo.sh and test.sh: creates .venv with the pinned requirements, or reuses it. Sets PYTHON.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
stamp=$here/.venv/requirements.sha256
wanted=$(sha256sum < "$here/requirements.txt" | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    python=$(command -v python3.11 || command -v python3 || true)
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: Python 3.11 or newer is needed; install it (with its venv module) and start again" >&2
        exit 2
    fi
    echo "setting up .venv (about 5 GB, a few minutes; once only) ..."
    [ -x "$here/.venv/bin/python" ] || "$python" -m venv "$here/.venv"
    "$here/.venv/bin/python" -m pip install --disable-pip-version-check -r "$here/requirements.txt"
    echo "$wanted" > "$stamp"
fi
PYTHON=$here/.venv/bin/python
export PYTHON
