"""What the paper's tables need: which detectors, trained on what, scored on which sets."""

import dataclasses
from pathlib import Path

from avh_shards import UserError
from jax_avh.data import open_source

DATASETS = {"fakeavceleb": "FakeAVCeleb", "av_deepfake1m": "AV-Deepfake1M"}  # folder -> name, in the tables' order
STATES = {"untrimmed": False, "trimmed": True}
TRAINED_IN = "untrimmed"
MAIN = "av_deepfake1m"  # what AVH-Align is trained on
SUPERVISED = {"avh_sup": False, "rawnet2": True, "mds": True}  # method -> whether it is tested within its set alone
SHARES = (0.1, 0.5)  # of the real training clips: the ablation of the training set's size
UNTRAINED = ("leading_silence", "leading_amplitude", "speech_forensics", "factor", "clip_length")


@dataclasses.dataclass(frozen=True)
class Detector:
    """A row of a table."""

    name: str  # of its workdir and score files
    method: str
    trained_on: str = ""  # folder of a data set; "" = it does not learn
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # fields of its training's configuration
    sync: str = ""  # detector whose weights it reads, which stands before it in the plan
    within: bool = False  # whether it is tested on the data set it was trained on alone, as was published


def detectors(root: Path) -> list[Detector]:
    """All detectors that the training sets below a root allow; the first is the one that reports look at closest.

    Raises:
      UserError: there are none.
    """
    there = [dataset for dataset in DATASETS if (root / dataset / TRAINED_IN / "train").is_dir()]
    if not there:
        layout = f"{'|'.join(DATASETS)}/{'|'.join(STATES)}/{{train,val,test}}"
        raise UserError(f"{root}: no training shards; lay them out as {layout}")
    unsupervised = [Detector("avh_align-mlp", "avh_align", MAIN), Detector("avad", "avad", MAIN, sync="avh_align-mlp")]
    untrained = [Detector(method, method) for method in UNTRAINED]
    supervised = [
        Detector(f"{method}-{dataset}", method, dataset, within=within)
        for method, within in SUPERVISED.items()
        for dataset in there
    ]
    rivals = untrained + supervised
    return unsupervised + rivals + _ablations(root) if MAIN in there else rivals


def _ablations(root: Path) -> list[Detector]:
    """Of AVH-Align and its supervised twin, all on one set."""
    planned = [
        Detector("avh_sup-linear", "avh_sup", MAIN, {"method.head": "linear"}),
        Detector("avh_align-linear", "avh_align", MAIN, {"method.head": "linear"}),
        Detector("avh_align-not-normalised", "avh_align", MAIN, {"model.normalise": "False"}),
    ]
    real = len(open_source(root / MAIN / TRAINED_IN / "train").real().members)
    sizes = {share: {"data.train_clips": str(max(round(share * real), 1))} for share in SHARES}
    return planned + [Detector(f"avh_align-{share:.0%}", "avh_align", MAIN, size) for share, size in sizes.items()]


def test_sets(root: Path) -> list[tuple[str, str]]:
    """(data set, state) of the test shards that there are."""
    return [(dataset, state) for dataset in DATASETS for state in STATES if (root / dataset / state / "test").is_dir()]
