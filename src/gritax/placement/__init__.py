"""Where a run takes place: the processes it consists of."""

from ._processes import is_first as is_first, join as join
