"""Compiles a run's programs for TPUs or GPUs that this machine need not have: do they fit, and what binds them?

python -m launch.compile_check --topology=v5e:4x4 --config.data.batch_frames=8192 --config.train.precision=bfloat16
python -m launch.compile_check --topology=h100:8 --config.method=rawnet2
"""

import dataclasses
import json
from typing import cast

from absl import flags

from avh_shards.paths import atomic_write
from jax_avh.compile_check import DoesNotFit, check_programs, format_checks
from jax_avh.configs import list_all_settings, make_config
from jax_avh.methods import METHODS, TrainableMethod
from jax_avh.parallel import keep_to_cpu
from launch import command

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU slice (v5e:4x4; v4, v5p, v6e likewise) or GPUs (h100, h200 or a100; h100:8).", required=True
)
SLICES = flags.DEFINE_integer("slices", 1, "Number of TPU slices.", lower_bound=1)
FRAMES = flags.DEFINE_integer("frames", 10_260_000, "Frames of the training clips.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 1024, "Feature width.", lower_bound=1)
PLACEMENT = flags.DEFINE_enum(
    "placement", "auto", ("auto", "device", "stream"), "Where features are kept; short for --config.data.placement."
)
JSON = flags.DEFINE_string("json", None, "File to write the figures to.")


def main(settings: list[str]) -> int:
    """Parses the flags and checks the programs; returns exit status 1 if one does not fit."""
    keep_to_cpu()
    given = dict(flag.removeprefix("--config.").split("=", 1) for flag in settings)
    imagined = {"data.train": "imagined", "data.val": "imagined"}
    config = make_config(imagined | {"data.placement": PLACEMENT.value} | given)
    method = cast(TrainableMethod, METHODS[config.method.name])
    if method.unit != "frames":
        config.data.placement = "auto"  # examples are read ahead
    try:
        checks = check_programs(method, config, TOPOLOGY.value, FRAMES.value, WIDTH.value, SLICES.value)
    except DoesNotFit as error:
        print(f"does not fit: {error}")
        return 1
    if JSON.value:
        with atomic_write(JSON.value) as temporary:
            temporary.write_text(json.dumps([dataclasses.asdict(check) for check in checks], indent=2) + "\n")
    print(format_checks(checks, method.unit, FRAMES.value))
    return 0


if __name__ == "__main__":
    command.run(main, list_settings=list_all_settings)
