#!/usr/bin/env python3
"""COCO annotations to palette masks (prepare/coco.py)."""

import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prepare.coco import main  # noqa: E402

if __name__ == "__main__":
    main()
