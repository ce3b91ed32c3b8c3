#!/usr/bin/env python3
"""PASCAL VOC 2012 with the labels of SBD, ready for training (prepare/voc.py)."""

import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prepare.voc import main  # noqa: E402

if __name__ == "__main__":
    main()
