"""The AV-HuBERT encoder: network, official files, batches of clips -> features."""

from extract.avhubert.checkpoint import load_avhubert, random_avhubert
from extract.avhubert.encode import encode_clips
from extract.avhubert.model import AVHubert, AVHubertConfig

__all__ = ["AVHubert", "AVHubertConfig", "encode_clips", "load_avhubert", "random_avhubert"]
