#!/usr/bin/env python3
"""RGB-coloured masks to palette masks (prepare/rgb.py)."""

import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prepare.rgb import main  # noqa: E402

if __name__ == "__main__":
    main()
