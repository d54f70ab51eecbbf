"""The AV-HuBERT encoder: network, official weights, and features of batches of clips."""

from extract.avhubert.checkpoint import load_avhubert, random_avhubert
from extract.avhubert.model import AVHubert, AVHubertConfig

__all__ = ["AVHubert", "AVHubertConfig", "load_avhubert", "random_avhubert"]
