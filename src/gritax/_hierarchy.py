"""Levels of MGRIT: how many steps each has, and how far one of its steps reaches."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from ._arguments import require_whole
from ._layout import Layout
from ._method import Method, Options, Task


@dataclass(frozen=True)
class Level:
    """Level `index` has the points `0, …, size`; one of its steps stands for `stride` training steps.

    Every `factor`-th point is a C-point; the others, the trailing ones among them, are F-points. `sweeps` FC sweeps
    precede the last F-relaxation, with the weight `weight` in their C-relaxations. At most `lanes` intervals advance together.
    The coarsest level is one interval, `factor == size`: it is solved step by step. On a mesh `c_layout` and `point_layout` say
    who holds what.
    """

    index: int
    size: int
    stride: int
    factor: int
    sweeps: int = 0
    weight: float = 1.0
    lanes: int | None = None
    c_layout: Layout | None = None
    point_layout: Layout | None = None

    @property
    def num_intervals(self) -> int:
        """The intervals between neighbouring C-points."""
        return self.size // self.factor

    @property
    def exact_intervals(self) -> int:
        """How many intervals relaxation, from the first on, makes exact."""
        return 1 + (self.sweeps if self.weight == 1 else 0)

    @property
    def tail(self) -> int:
        """The F-points after the last C-point."""
        return self.size % self.factor

    @property
    def layout(self) -> Layout:
        """Who holds its C-points, each with the interval that it begins."""
        return self.c_layout or Layout(self.num_intervals + 1)

    @property
    def points(self) -> Layout:
        """Who holds its points, which are the C-points of the next finer level."""
        return self.point_layout or Layout(self.size + 1)

    @property
    def num_lanes(self) -> int:
        """The intervals that a device advances together; F-points after the last C-point are one more."""
        return self.layout.block or self.num_intervals + (self.tail > 0)

    @property
    def num_arrivals(self) -> int:
        """The arrivals that a device holds."""
        return self.layout.block or self.num_intervals

    @property
    def num_steps(self) -> int:
        """The steps that a device takes, and its right-hand sides."""
        return self.factor * self.layout.block or self.size


@dataclass(frozen=True)
class Multigrid(Method):
    r"""The multigrid method: which levels, which cycle, how much relaxation.

    Level $l$ has $N_l$ steps, $N_{l+1} = \lfloor N_l / m_l \rfloor$, and one of its steps has the stride
    $m_0 \cdots m_{l-1}$.

    **Arguments**

    - `coarsening`: the factor $m$, one for all levels or one per level; $L - 1$ factors mean at most $L$ levels.
    - `max_levels`: at most so many levels; `None` for as many as `min_coarse` allows.
    - `min_coarse`: a level is coarsened while the next one has at least so many steps.
    - `cycle`: `"V"`, or `"F"`, which spends one more V-cycle on each level below the finest on the way back. With two
      levels they are the same.
    - `relaxation`: FC sweeps before the last F-relaxation, one number or one per level: 0 is F, 1 is FCF. Two levels
      with 0 are parareal, from `initial_guess="nested"`.
    - `c_relaxation_weight`: $\omega$ in the C-relaxation $u_c \leftarrow \omega \Phi(u_{c-1}) + (1 - \omega) u_c$.
    - `skip_first_down`: start with the way up from the coarsest level, without relaxation or right-hand sides. It replaces
      the initial guess.
    - `lanes`: how many intervals of a level advance together; `None` for all. On a CPU few are faster where states are larger
      than the cache, on a GPU thousands; `gritax.plan` measures it. The weights are the same, to rounding.

    Raises `ValueError`, naming the argument, for a factor below 2 or not whole, and for counts that do not fit together.

    Schroder 2017, arXiv 1708.02276, section 2; the names are those of XBraid.

    >>> import gritax
    >>> print(gritax.Multigrid(coarsening=4).hierarchy(1000))
    level  steps  stride  factor  relaxation
        0   1000       1       4         FCF
        1    250       4       4         FCF
        2     62      16       4         FCF
        3     15      64              serial
    """

    takes: ClassVar[frozenset[str]] = Method.OPTIONS
    differentiable: ClassVar[bool] = True

    coarsening: int | tuple[int, ...] = 4
    max_levels: int | None = None
    min_coarse: int = 5
    cycle: Literal["V", "F"] = "V"
    relaxation: int | tuple[int, ...] = 1
    c_relaxation_weight: float = 1.0
    skip_first_down: bool = False
    lanes: int | None = None

    def __post_init__(self):
        for name in ("coarsening", "relaxation"):
            value = getattr(self, name)
            if not isinstance(value, Integral) and hasattr(value, "__iter__"):
                object.__setattr__(self, name, tuple(value))
        require_whole("coarsening", self.coarsening, 2)
        require_whole("relaxation", self.relaxation, 0)
        require_whole("min_coarse", self.min_coarse, 1)
        for name in ("max_levels", "lanes"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), 1)
        if self.cycle not in ("V", "F"):
            raise ValueError(f'cycle must be "V" or "F", not {self.cycle!r}.')
        if not isinstance(self.skip_first_down, bool):
            raise ValueError(f"skip_first_down must be True or False, not {self.skip_first_down!r}.")
        weight = self.c_relaxation_weight
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < weight < 2:
            raise ValueError(f"c_relaxation_weight must lie between 0 and 2, not {weight!r}; 1 is plain relaxation.")
        if isinstance(self.coarsening, tuple):
            available = len(self.coarsening) + 1
            if self.max_levels is not None and self.max_levels > available:
                raise ValueError(
                    f"coarsening gives {len(self.coarsening)} factors, enough for {available} levels, but max_levels is "
                    f"{self.max_levels}. Give {self.max_levels - 1} factors, or lower max_levels."
                )

    def require(self, num_steps: int, options: Options) -> None:
        super().require(num_steps, options)
        self.hierarchy(num_steps)

    def solved(self, task: Task, options: Options) -> tuple[Any, Any]:
        from ._multigrid import solved  # it is built upon levels, which this file is about

        return solved(self, task, options)

    def hierarchy(self, num_steps: int) -> "Hierarchy":
        """The levels for `num_steps` training steps. Raises `ValueError` for fewer than one."""
        require_whole("num_steps", num_steps, 1)
        if num_steps >= 2**31:
            raise ValueError(f"num_steps must be below 2^31, since steps are counted in int32; {num_steps} is not.")
        factors = self._factors(num_steps)
        if isinstance(self.relaxation, tuple) and len(self.relaxation) < len(factors):
            raise ValueError(
                f"relaxation gives {len(self.relaxation)} numbers, but the hierarchy relaxes on {len(factors)} levels. "
                "Give one number for each of them, or one for all."
            )
        levels, size, stride = [], int(num_steps), 1
        for index, factor in enumerate(factors):
            sweeps = self.relaxation[index] if isinstance(self.relaxation, tuple) else self.relaxation
            levels.append(Level(index, size, stride, factor, int(sweeps), float(self.c_relaxation_weight), self.lanes))
            size, stride = size // factor, stride * factor
        levels.append(Level(len(factors), size, stride, size))
        return Hierarchy(tuple(levels))

    def _factors(self, size: int) -> list[int]:
        factors: list[int] = []
        while self.max_levels is None or len(factors) + 1 < self.max_levels:
            if isinstance(self.coarsening, tuple):
                if len(factors) == len(self.coarsening):
                    break
                factor = self.coarsening[len(factors)]
            else:
                factor = self.coarsening
            if size // factor < self.min_coarse:
                break
            factors.append(int(factor))
            size //= factor
        return factors


@dataclass(frozen=True)
class Hierarchy:
    """The levels of a solve, finest first; prints as a table."""

    levels: tuple[Level, ...]

    def __getitem__(self, index: int) -> Level:
        return self.levels[index]

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(level.size for level in self.levels)

    def rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("level", "steps", "stride", "factor", "relaxation")]
        for level in self.levels[:-1]:
            rows.append((*map(str, (level.index, level.size, level.stride, level.factor)), "FC" * level.sweeps + "F"))
        last = self.levels[-1]
        return [*rows, (str(last.index), str(last.size), str(last.stride), "", "serial")]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
