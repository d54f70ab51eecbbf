"""The AV-HuBERT encoder: network, official files, batches of clips -> features."""

from extract.avhubert.checkpoint import load_avhubert, random_avhubert
from extract.avhubert.model import AVHubert, AVHubertConfig

__all__ = ["AVHubert", "AVHubertConfig", "load_avhubert", "random_avhubert"]
