"""Whether solving in parallel pays here: measured and predicted before a run."""

from ._plan import DEVICES as DEVICES, Pilot as Pilot, Plan as Plan
from ._planner import LEAST_WORK as LEAST_WORK, can_pay as can_pay, plan as plan, planned as planned
from ._speeds import Speeds as Speeds, measured as measured
