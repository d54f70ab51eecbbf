"""Plans what the paper's tables need: which methods, trained on what, scored on which sets."""

import dataclasses

from avh_shards import UserError
from avh_shards.format import Variant
from avh_shards.paths import FilePath
from jax_avh.data import open_source

TEST_DATASETS = {"fakeavceleb": "FakeAVCeleb", "av_deepfake1m": "AV-Deepfake1M"}  # folder -> name, in the tables' order
MAIN = "av_deepfake1m"  # what AVH-Align is trained on
SUPERVISED = {"avh_sup": False, "rawnet2": True, "mds": True}  # method -> whether it is tested only within its set
TRAINING_SHARES = (0.1, 0.5)  # of the real training clips: the ablation of the training set's size
UNTRAINED = ("leading_silence", "leading_amplitude", "speech_forensics", "factor", "clip_length")


TRAINED_IN = Variant.UNTRIMMED


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A method, how it is trained, and where it is tested: a row of the tables."""

    name: str  # of its workdir and score files
    method: str
    trained_on: str = ""  # folder of a data set; "" = it is not trained
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # fields of its training's configuration
    sync: str = ""  # an earlier experiment, whose weights it reads
    within: bool = False  # whether it is tested only on the data set it was trained on, as was published


def experiments(root: FilePath) -> list[Experiment]:
    """Plans all experiments that the training sets below a root allow; reports examine the first most closely.

    Raises:
      UserError: there are none.
    """
    there = [dataset for dataset in TEST_DATASETS if (root / dataset / TRAINED_IN.value / "train").is_dir()]
    if not there:
        layout = f"{'|'.join(TEST_DATASETS)}/{'|'.join(variant.value for variant in Variant)}/{{train,val,test}}"
        raise UserError(f"{root}: no training shards; lay them out as {layout}")
    unsupervised = [
        Experiment("avh_align-mlp", "avh_align", MAIN),
        Experiment("avad", "avad", MAIN, sync="avh_align-mlp"),
    ]
    untrained = [Experiment(method, method) for method in UNTRAINED]
    supervised = [
        Experiment(f"{method}-{dataset}", method, dataset, within=within)
        for method, within in SUPERVISED.items()
        for dataset in there
    ]
    if MAIN not in there:
        return untrained + supervised
    return unsupervised + untrained + supervised + _ablations(root)


def _ablations(root: FilePath) -> list[Experiment]:
    """Plans the ablations of AVH-Align and its supervised twin, all on one set."""
    planned = [
        Experiment("avh_sup-linear", "avh_sup", MAIN, {"method.head": "linear"}),
        Experiment("avh_align-linear", "avh_align", MAIN, {"method.head": "linear"}),
        Experiment("avh_align-not-normalised", "avh_align", MAIN, {"model.normalise": "False"}),
    ]
    real = len(open_source(root / MAIN / TRAINED_IN.value / "train").real().members)
    sizes = {share: {"data.train_clips": str(max(round(share * real), 1))} for share in TRAINING_SHARES}
    return planned + [Experiment(f"avh_align-{share:.0%}", "avh_align", MAIN, size) for share, size in sizes.items()]


def test_sets(root: FilePath) -> list[tuple[str, Variant]]:
    """Returns the data set and variant of the test shards that exist."""
    return [
        (dataset, variant)
        for dataset in TEST_DATASETS
        for variant in Variant
        if (root / dataset / variant.value / "test").is_dir()
    ]
