"""What a method is: `gritax.solve` and `gritax.train` ask it for a solution, and know nothing else of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jax.sharding import Mesh
from jaxtyping import Array, PyTree


if TYPE_CHECKING:  # all of these are built upon a method: multigrid's, of which levels are known by
    from ._attempt import Progress
    from ._evolution import Evolution
    from ._guess import InitialGuess
    from ._solution import Solution
    from .checkpoint import Directory


@dataclass(frozen=True)
class Task:
    """What is solved: `num_steps` steps of `evolution` from the state of these floating leaves and clocks.

    It has been validated, and nothing keeps its steps from being solved at once.
    """

    evolution: "Evolution"
    floating: PyTree[Array]
    clock: PyTree[Array]
    num_steps: int


@dataclass(frozen=True)
class Options:
    """How: the arguments of `gritax.solve`, checked; None or False for what is not asked for.

    - `checkpoint`: where the run is kept, and whether to go on from there.
    - `exactly`: without a tolerance, as closely as derivatives need it.
    - `began`: when the call did, of `time.perf_counter`.
    """

    progress: "Progress"
    began: float
    tolerance: float | None = None
    max_iterations: int = 50
    initial_guess: "InitialGuess | None" = None
    save_every: int | None = None
    checkpoint: "tuple[Directory, bool] | None" = None
    mesh: Mesh | None = None
    profile: bool = False
    exactly: bool = False


class Method(ABC):
    """How all steps of an evolution are solved. What is no property of these steps is a field of the method itself.

    - `takes`: the options that it takes, of those in `OPTIONS`; for the others there is no use, or not yet.
    - `differentiable`: whether its solutions have derivatives, which are made of their `Window`.
    - `trains`: whether `gritax.train` takes it, and gives it all steps at once.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"initial_guess", "save_every", "checkpoint", "mesh", "profile"})
    takes: ClassVar[frozenset[str]] = frozenset()
    differentiable: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    @abstractmethod
    def solved(self, task: Task, options: Options) -> "tuple[Solution, Any]":
        """(the solution, converged or not; the `Window` that its derivatives are made of, or None).

        Raises `ValueError` for what it cannot solve, before any long work.
        """

    def require(self, num_steps: int, options: Options) -> None:
        """Raises `ValueError` for options that it does not take, before phi is looked at."""
        for name in sorted(self.OPTIONS - self.takes):
            if getattr(options, name) not in (None, False):
                raise ValueError(f"{name} is not for {self.name} yet: leave it out, or use a gritax.Multigrid.")

    @property
    def name(self) -> str:
        return f"gritax.{type(self).__name__}"

    @property
    def asked(self) -> dict[str, Any]:
        """What of it a run must have been asked for as well that is taken up again, as JSON has it."""
        return {"method": self.name}
