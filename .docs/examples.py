"""For the reference pages: the examples of docstrings, which Markdown would take for quotations, as blocks of code."""

import re

from griffe import Extension

# From a prompt at the start of a paragraph to the next empty line.
EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


class FencedExamples(Extension):
    """Fences the doctests, and drops one colon of the `::` that announces a literal block."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            fenced = EXAMPLE.sub(lambda m: f"```pycon\n{m[0]}\n```", obj.docstring.value)
            obj.docstring.value = re.sub(r"::$", ":", fenced, flags=re.MULTILINE)
