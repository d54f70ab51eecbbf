"""The demo: real clips, cheap fakes of them, and a simulated corpus, through every command."""

from apps.demo.run import demo

__all__ = ["demo"]
