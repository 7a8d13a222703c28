"""What the counts of the paper's Tables 5 and 6 depend on: the seed, the first down-sweep, the cycle, the coarsest level.

python benchmarks/paper_seeds.py benchmarks/results/paper_seeds.json
"""

import json
import sys
from pathlib import Path

import jax

from gritax import experiments


_SEEDS = {f"seed {seed}": {"seed": seed} for seed in range(1, 9)}
_METHODS = {
    "seed 1, first down-sweep skipped": {"skip_first_down": True},
    "seed 1, V-cycles": {"cycle": "V"},
    "seed 1, two levels": {"max_levels": 2},
    "seed 1, coarsest level of at least 10": {"min_coarse": 10},
}
_FEW_SEEDS = dict(list(_SEEDS.items())[:3])
_CASES = (
    (6, (400, 800, 1600, 3200), _SEEDS | _METHODS),
    (5, (12800,), _FEW_SEEDS),
    (6, (12800,), _FEW_SEEDS),
)


def main(file: str) -> None:
    jax.config.update("jax_enable_x64", True)
    rows = []
    for number, sizes, variants in _CASES:
        table = experiments.paper_table(number)
        for name, options in variants.items():
            for num_steps in sizes:
                row = experiments.run_row(table, num_steps, **options)
                rows.append({"variant": name, **vars(row)})
                print(f"table {number}, {num_steps:6,} steps, {name}: {row.iterations} (published {row.published})", flush=True)
    Path(file).write_text(json.dumps({"command": f"python benchmarks/paper_seeds.py {file}", "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
