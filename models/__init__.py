"""The networks: DeepLab-v2, the form of its input, and where its first weights come from."""

from models.deeplab import BACKBONES, deeplab_v2, upsample

__all__ = ["BACKBONES", "deeplab_v2", "upsample"]
