"""What is known of a run, on disk."""

from ._arrays import digest as digest, from_arrays as from_arrays, to_arrays as to_arrays
from ._directory import OWN as OWN, Checkpoint as Checkpoint, Directory as Directory
from ._facts import Unusable as Unusable, require_kinds as require_kinds
from ._iterates import Iterates as Iterates
from ._keeper import Keeper as Keeper
from ._place import kept_in as kept_in
from ._same_run import (
    difference as difference,
    require_same as require_same,
    require_same_method as require_same_method,
    require_same_step as require_same_step,
    taken as taken,
)
