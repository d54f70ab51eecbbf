"""Settings that precede every import, and the places of test material; the rest is in fixtures.py."""

import os
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
# Computes the same, but compiles in a third of the time.
quickly = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false" if quickly else ""
os.environ |= dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)  # test workers run in parallel

ROOT = Path(__file__).parents[1]
TESTDATA = ROOT / "tests" / "testdata"  # official outputs for synthetic weights and clips; see its README
SHARED = ROOT.parent / "shared" / "fixtures"  # outputs too large for the repository, where available


def pytest_configure(config):
    """Loads the libraries and the fixtures, except in the process of pytest-xdist that only starts the others."""
    only_starts_others = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not only_starts_others:
        config.pluginmanager.import_plugin("tests.fixtures")
