"""The cost of the machinery: what gritax takes on top of the arithmetic of the training steps.

python benchmarks/machinery.py [--json FILE] [--only NAME ...] [--peer-python PATH]
"""

import argparse
import json
import sys
from pathlib import Path

import compilation
import memory
import peer
import serial
import sweep
from _measuring import load, machine, today, versions


MEASUREMENTS = {"compilation": compilation, "sweep": sweep, "peer": peer, "memory": memory, "serial": serial}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there")
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--peer-python", metavar="PATH", help="the Python of an environment with PyMGRIT")
    options = parser.parse_args()

    report = {"command": command(), "date": today(), "machine": machine(), "versions": versions()}
    report |= {"load_average": {}, "results": {}}
    for name in options.only:
        if name == "peer" and not options.peer_python:
            print(peer.HOW_TO, end="\n\n")
            continue
        module = MEASUREMENTS[name]
        before = load()
        results = module.measure(options.peer_python) if name == "peer" else module.measure()
        report["load_average"][name] = {"before": before, "after": load()}
        report["results"][name] = results
        print(module.__doc__, table([module.HEADER, *module.rows(results)]), sep="\n", end="\n\n", flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")


def command() -> str:
    """As it was given, but for paths that mean nothing elsewhere."""
    words = ["PATH" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python", "benchmarks/machinery.py", *words])


def table(rows: list[tuple]) -> str:
    columns = [[str(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join("  ".join(map(str.rjust, row, widths)).rstrip() for row in zip(*columns, strict=True))


if __name__ == "__main__":
    main()
