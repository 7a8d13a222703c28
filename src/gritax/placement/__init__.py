"""Where a run takes place: its devices, and the processes it consists of."""

from ._mesh import mesh as mesh
from ._processes import is_first as is_first, join as join
from ._simulation import Exchange as Exchange, Simulation as Simulation
