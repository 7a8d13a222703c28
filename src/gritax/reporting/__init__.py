"""A solve as figures that JSON can hold, and as a page to read."""

from ._figures import figures as figures, plain as plain
from ._page import page as page
