"""What scores videos in these tests."""

from pathlib import Path

import pytest

from apps.detect import DetectSettings
from tests import rules


@pytest.fixture(scope="session")
def narrow_weights(tmp_path_factory) -> Path:
    """Alignment weights for the tiny encoder's features."""
    return rules.write_alignment_weights(tmp_path_factory.mktemp("w") / "w.safetensors", width=64)


@pytest.fixture
def settings(tiny_checkpoint, narrow_weights) -> DetectSettings:
    return DetectSettings(str(tiny_checkpoint), str(narrow_weights))
