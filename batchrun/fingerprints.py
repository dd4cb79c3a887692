"""A fingerprint of code: equal for equal meaning, so that a resume can tell whether a job's functions were changed."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

from batchrun.jobs import Job

_OURS = ("job", "items", "initializer")


def code_fingerprint(code: Job | Callable[..., Any]) -> str:
    """Return 32 hexadecimal digits for a function, or for a job's task and items functions.

    It is made of the syntax tree, so comments, docstrings, formatting and the options of ``@job`` do not count. What
    has no source of its own (a lambda, code typed into a shell) goes by its bytecode.
    """
    functions = [code.task, code.items] if isinstance(code, Job) else [code]
    text = "\n".join(_described(one) for one in functions if one is not None)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _described(function: Any) -> str:
    function = _underneath(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    return (_tree(function) if code.co_name != "<lambda>" else None) or _bytecode(code)


def _underneath(function: Any) -> Any:
    """The plain function inside partials, methods and instances that can be called."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif hasattr(function, "__code__") or isinstance(function, type) or not hasattr(type(function).__call__, "__code__"):
            return function
        else:
            function = type(function).__call__


def _tree(function: Any) -> str | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
        return None
    top = tree.body[0] if tree.body else None
    if not isinstance(top, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    top.decorator_list = [one for one in top.decorator_list if _last_name(one) not in _OURS]
    return _canonical(top)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _canonical(node: Any) -> str:
    """``ast.dump`` without docstrings and without empty fields, which come and go from one Python to the next."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != [] and name != "kind"}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in sorted(fields.items()))})"


def _bytecode(code: types.CodeType) -> str:
    constants = [_bytecode(one) if isinstance(one, types.CodeType) else _constant(one) for one in code.co_consts]
    return f"{code.co_code.hex()}|{constants}|{code.co_names}|{code.co_varnames}"


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def difference(name: str, old: str | None, new: str | None) -> str:
    """What changed in one part of a fingerprint, for people."""
    if name == "code":
        return "the code of the task or the items function"
    return f"{name} was {_short(old)}, is {_short(new)}"


def _short(text: str | None) -> str:
    if text is None:
        return "not there"
    return repr(text if len(text) <= 120 else text[:117] + "...")
