"""Simulated clips, as npz files or as the shards that launch.paper wants."""

from apps.simulate.corpus import Corpus, simulate_corpus
from apps.simulate.shards import simulate

__all__ = ["Corpus", "simulate", "simulate_corpus"]
