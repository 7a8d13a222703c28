"""Processes that a test has started."""


def members(launcher):
    """The processes that it has started and that are there still, in order."""
    try:
        with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as children:
            return [int(each) for each in children.read().split()]
    except FileNotFoundError:
        return []
