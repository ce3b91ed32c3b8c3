"""Trained networks at work, on images of any size.

    from predict import load
    network = load("runs/demo/demo__p3--l.pt")
    classes, confidence = network.predict("photo.jpg")
"""

import dmt  # noqa: F401 - says how torch's threads wait, which torch reads when it is loaded
from predict.network import load

__all__ = ["load"]
