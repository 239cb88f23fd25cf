"""The library's public names with their signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re

import dcopy

QUOTED = re.compile(r"(: |-> )'([^']*)'")  # an annotation, which is kept as text


def entries() -> list[dict]:
    """Public names of `dcopy` and of each of its public modules: title, text and members."""
    own = [describe(name, getattr(dcopy, name)) for name in dcopy._PUBLIC]
    found = [{"name": "dcopy", "text": inspect.getdoc(dcopy), "members": own}]
    for name in dcopy._MODULES:
        module = importlib.import_module(getattr(dcopy, name).__name__)
        members = [describe(n, v) for n, v in vars(module).items() if is_public(n, v, module)]
        found.append({"name": f"dcopy.{name}", "text": inspect.getdoc(module), "members": members})
    return found


def is_public(name: str, value, module) -> bool:
    """Whether it is a function or a class of this module, or one that a package hands on from its own."""
    if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
        return False
    package = hasattr(module, "__path__")
    own = value.__module__ == module.__name__ or (package and value.__module__.startswith(module.__name__))
    return own and bool(inspect.getdoc(value))


def describe(name: str, value) -> dict:
    """Name, signature and docstring of a function or a class, and of the methods that a class defines."""
    methods = []
    if inspect.isclass(value):
        own = [(n, v) for n, v in vars(value).items() if not n.startswith("_") and inspect.isfunction(v)]
        methods = [describe(n, v) for n, v in own if inspect.getdoc(v)]
    try:
        signature = QUOTED.sub(r"\1\2", str(inspect.signature(value)))
    except (TypeError, ValueError):  # of some built-in bases
        signature = "(...)"
    return {"name": name, "signature": signature, "text": inspect.getdoc(value) or "", "methods": methods}
