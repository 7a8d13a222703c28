"""Examples of docstrings as blocks of Python: an extension of Griffe."""

import re

import griffe


class Doctests(griffe.Extension):
    """Puts a fence around each `>>>` with what follows it up to an empty line."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^>>> (?:.+\n?)+",
                lambda found: f"```pycon\n{found[0].rstrip()}\n```\n",
                obj.docstring.value,
                flags=re.MULTILINE,
            )
