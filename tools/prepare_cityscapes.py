#!/usr/bin/env python3
"""A Cityscapes folder checked, its zip files unpacked, its lists written (prepare/cityscapes.py)."""

import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prepare.cityscapes import main  # noqa: E402

if __name__ == "__main__":
    main()
