"""`gritax plan`."""

from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console

from .._arguments import require_whole
from ..coarse import named
from ..placement import mesh
from ..planning import DEVICES, plan
from ..reporting import plain
from ._files import Perhaps, require_writable
from ._report import CONVERGED, write_json
from ._training import Training


@dataclass
class Plan(Training):
    """Measure this machine and a pilot window, and say what a training run would take: serially, in parallel, on more devices.

    The problems and their options are those of gritax train. It takes about a minute, most of it compilation.

    Example: gritax plan digits --steps 100000

    Exit status: 0, whatever is faster; 2 bad arguments.
    """

    coarse: Literal["auto", "FrozenGradient", "Stabilized", "Tangent"] = "auto"
    """Coarse steps; "auto" takes those that promise the least time here."""
    window: int | None = None
    """Steps that are solved at once; all of them if not given."""
    json: Perhaps = None
    """Write the plan to this file as well, replacing it."""

    def run(self, console: Console) -> int:
        require_whole("--steps", self.steps, 1)
        if self.window is not None:
            require_whole("--window", self.window, 1)
        require_writable(self.json)
        problem = self.with_coarse("auto" if self.coarse == "auto" else named(self.coarse))
        step = problem.step
        console.print(f"{self.problem}, {self.steps:,} training steps, {self.dtype}\n")
        found = plan(
            step.loss,
            step.optimizer,
            step.batch,
            problem.state.params,
            self.steps,
            coarse=step.coarse,
            window=self.window,
            mesh=mesh(),
        )
        console.print(str(found))
        if self.json is not None:
            predicted = {
                "seconds": found.seconds,
                "serial_seconds": found.serial_seconds,
                "seconds_on": {devices: found.seconds_on(devices) for devices in DEVICES},
                "pays": found.pays,
                "depth": found.depth,
                "work": found.work,
                "window": found.window,
                "levels": found.hierarchy.sizes,
                "coarse_steps": found.coarse_steps,
            }
            settings = {name: value for name, value in vars(self).items() if name != "json"}
            measured = {name: plain(asdict(each)) for name, each in (("speeds", found.speeds), ("pilot", found.pilot))}
            write_json(self.json, {"settings": settings, **predicted, **measured, "sentence": found.sentence})
        return CONVERGED
