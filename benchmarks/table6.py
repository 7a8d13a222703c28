"""What the counts of the paper's Table 6 depend on: the seed, the first down-sweep, the cycle, the coarsest level.

python benchmarks/table6.py benchmarks/results/table6.json
"""

import json
import sys
from pathlib import Path

import jax

from gritax import experiments


_NUM_STEPS = (400, 800, 1600, 3200)
_VARIANTS = {
    **{f"seed {seed}": {"seed": seed} for seed in range(1, 9)},
    "seed 1, first down-sweep skipped": {"skip_first_down": True},
    "seed 1, V-cycles": {"cycle": "V"},
    "seed 1, two levels": {"max_levels": 2},
    "seed 1, coarsest level of at least 10": {"min_coarse": 10},
}


def main(file: str) -> None:
    jax.config.update("jax_enable_x64", True)
    table = experiments.paper_table(6)
    counts = {}
    for name, options in _VARIANTS.items():
        counts[name] = [experiments.run_row(table, num_steps, **options).iterations for num_steps in _NUM_STEPS]
        print(f"{name:40} {counts[name]}", flush=True)
    published = [table.iterations[table.num_steps.index(num_steps)] for num_steps in _NUM_STEPS]
    command = f"python benchmarks/table6.py {file}"
    result = {"command": command, "num_steps": _NUM_STEPS, "published": published, "counts": counts}
    Path(file).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
