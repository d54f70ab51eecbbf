"""Runs the plan: trains what is not trained, scores what is not scored, evaluates all, prints the tables."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from apps.paper.plan import DATASETS, STATES, Detector, detectors, test_sets
from apps.paper.tables import format_tables
from extract.schema import InputError, check_output
from jax_avh.config import RESULT, make_config
from jax_avh.data import open_source
from jax_avh.evaluation import evaluate, open_scores
from jax_avh.evaluation.score import score_shards
from jax_avh.methods import METHODS, ClipMethod
from jax_avh.models import weights_file
from jax_avh.report.results import write_evaluation
from jax_avh.training import train

EVERY = "config"  # of settings: for all trainings; otherwise of a method's, or of a detector's alone
Settings = dict[str, dict[str, str]]  # whose -> field -> value


def paper(root: str | os.PathLike, output: str | os.PathLike, flags: Sequence[str] = ()) -> str:
    """Makes the paper's tables from feature shards; a stopped run, started again, goes on.

    Args:
      root: folder of the shards: <data set>/<untrimmed, trimmed>/<train, val, test>.
      output: gets `runs/`, `scores/`, `metrics.json`, `clips.csv`, `report.html`, `tables.txt`.
      flags: `--config.FIELD=VALUE` for all trainings; with a method's or a detector's name for `config`, for theirs.

    Returns:
      The tables.

    Raises:
      InputError: there are no shards, or a training or scoring fails.
    """
    root, output = Path(root), Path(output)
    check_output(output / "tables.txt")
    sets, planned = test_sets(root), detectors(root)
    settings = _settings(flags, planned)
    if not sets:
        raise InputError(f"{root}: no test shards; lay them out as <data set>/<untrimmed, trimmed>/test")
    files, skipped = [], []
    for detector in planned:
        weights = _trained(detector, root, output / "runs" / detector.name, settings)
        for dataset, state in sets:
            features = root / dataset / state / "test"
            if missing := _missing(detector, features):
                skipped.append(f"{detector.name} on {dataset}, {state}: its shards hold no {missing}")
                continue
            files.append(output / "scores" / f"{detector.name},{dataset},{state}.h5")
            notes = {"dataset": DATASETS[dataset], "trimmed": state == "trimmed"}
            _score(detector, weights, features, files[-1], notes)
    evaluation = evaluate(files, names=[detector_name(file) for file in files])
    write_evaluation(evaluation, output)
    text = "\n".join([format_tables(evaluation.metrics["results"]), *skipped])
    (output / "tables.txt").write_text(text + "\n")
    return text


def detector_name(file: Path) -> str:
    """Of a score file."""
    return file.name.partition(",")[0]


def _settings(flags: Sequence[str], planned: Sequence[Detector]) -> Settings:
    settings = {name: {} for detector in planned for name in (EVERY, detector.method, detector.name)}
    for flag in flags:
        setting, equals, value = flag.removeprefix("--").partition("=")
        owner, _, field = setting.partition(".")
        if owner not in settings or not equals:
            raise InputError(f"{flag}: give --NAME.FIELD=VALUE, NAME being {EVERY}, a method or one of runs/")
        settings[owner][field] = value
    return settings


def _trained(detector: Detector, root: Path, workdir: Path, settings: Settings) -> Path | None:
    """The workdir of a detector's training, which is run unless it has ended; None if it does not learn."""
    if not detector.trained_on:
        return None
    data = {f"data.{split}": str(root / detector.trained_on / STATES[0] / split) for split in ("train", "val")}
    given = settings[EVERY] | settings[detector.method] | settings[detector.name]
    config = make_config({"method": detector.method} | given | data | dict(detector.settings))
    print(f"\n=== {detector.name}, trained on {detector.trained_on}", flush=True)
    train(config, workdir)
    if not (workdir / RESULT).is_file():
        raise InputError(f"{workdir}: stopped before its end; the same command goes on")
    return workdir


def _missing(detector: Detector, features: Path) -> str | None:
    """An optional content of the shards that a detector needs and that is not there."""
    method, source = METHODS[detector.method], open_source(features)
    needs = method.needs if isinstance(method, ClipMethod) else ()
    return next((content for content in needs if not source.has(content)), None)


def _score(detector: Detector, weights: Path | None, features: Path, file: Path, notes: dict[str, object]) -> None:
    """Writes a score file, unless there is one of the same weights."""
    file.parent.mkdir(parents=True, exist_ok=True)
    digest = None if weights is None else hashlib.sha256(weights_file(weights).read_bytes()).hexdigest()
    if file.is_file() and open_scores(file).attributes.get("alignment_sha256") == digest:
        return
    score_shards(features, file, detector.method, weights, notes)
    print(file, flush=True)
