"""Generates the mutants of a source: each is one small change of its syntax tree.

The kinds of changes are the operators of cosmic-ray and mutmut, and further ones for conditions: a term removed, a
condition that always or never holds, elements of a ranking swapped, a statement or a keyword removed. Texts for people
and type annotations are not changed. The condition of an assertion is only negated, because the core itself cannot
violate it, so no test could detect a weaker assertion.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

Step = tuple[str, int | None]
"""A field of a node, and the index in it if the field is a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change.

    Attributes:
        file: Name of the source.
        function: Qualified name of the outermost function that contains it; empty outside functions.
        line: Line of the changed node.
        key: Its unique name, `file function: before -> after`, which does not depend on the line.
        path: The path to the node that is replaced.
        after: The node that replaces it; None to remove it from its list.
    """

    file: str
    function: str
    line: int
    key: str
    path: tuple[Step, ...]
    after: ast.AST | None


def mutants_of(file: str, source: str) -> list[Mutant]:
    """All mutants of a source, in the order of its lines."""
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for place in _places(ast.parse(source), (), "", file=file):
        for before, after_text, path, after in _changes(place):
            key = f"{file} {place.function or '(module)'}: {before} -> {after_text}"
            seen[key] += 1
            key = key if seen[key] == 1 else f"{key} #{seen[key]}"
            line: int = getattr(place.node, "lineno", 0)
            found.append(
                Mutant(file=file, function=place.outermost, line=line, key=key, path=place.path + path, after=after)
            )
    return found


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The syntax tree of a source with one mutant."""
    tree = ast.parse(source)
    *way, (name, at) = mutant.path
    node: ast.AST = tree
    for field, index in way:
        part = getattr(node, field)
        node = part if index is None else part[index]
    if at is None:
        setattr(node, name, copy.deepcopy(mutant.after))
    elif mutant.after is None:
        getattr(node, name).pop(at)
    else:
        getattr(node, name)[at] = copy.deepcopy(mutant.after)
    return ast.fix_missing_locations(tree)


# The places of changes.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    node: ast.AST
    parent: ast.AST
    path: tuple[Step, ...]
    function: str
    outermost: str


_LOGGED = {"log", "Log"}
"""Functions that log: the call is changed, its text is not."""


def _places(
    node: ast.AST, path: tuple[Step, ...], function: str, *, file: str, outermost: str = "", within: str = ""
) -> Iterator[_Place]:
    for name, part in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_comment", "type_params", "bases"}:
            continue
        several = cast("list[object]", part) if isinstance(part, list) else None
        children: list[tuple[int | None, object]] = [(None, part)] if several is None else [*enumerate(several)]
        for index, child in children:
            if not isinstance(child, ast.AST) or _is_left_alone(child, name, node):
                continue
            here, outer, scope = function, outermost, within
            if isinstance(child, ast.FunctionDef):
                here = f"{function}.{child.name}" if function else f"{within}{child.name}"
                outer = outermost or here
            elif isinstance(child, ast.ClassDef):
                scope = f"{within}{child.name}."
            step = (*path, (name, index))
            yield _Place(node=child, parent=node, path=step, function=here, outermost=outer)
            yield from _places(child, step, here, file=file, outermost=outer, within=scope)


def _is_left_alone(node: ast.AST, field: str, parent: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.arguments):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _name(node.value.func) == "assert_never":
        # The type checker proves that it is never reached.
        return True
    if isinstance(parent, ast.Assert) and field == "msg":
        return True
    if isinstance(node, ast.Assign) and isinstance(parent, ast.Module | ast.ClassDef):
        return _is_type(node.value) or _is_table(node.targets[0])
    if isinstance(node, ast.AnnAssign) and isinstance(parent, ast.Module):
        return _is_table(node.target)
    if isinstance(parent, ast.Call) and field == "args" and _name(parent.func) in _LOGGED:
        return True
    return isinstance(node, ast.Subscript) and _name(node.value) == "Literal"


def _is_type(value: ast.expr) -> bool:
    """Whether an assignment in a module names a type: `A | B`, `Literal[...]`, `Mapping[...]`."""
    if isinstance(value, ast.BinOp):
        return isinstance(value.op, ast.BitOr)
    return isinstance(value, ast.Subscript | ast.Name | ast.Attribute)


def _is_table(target: ast.expr) -> bool:
    """Whether it is a table of texts for people or of transitions, which no condition reads."""
    return _name(target) in {"MEANINGS", "USUAL", "RARE", "TRANSITIONS", "__slots__"}


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


# The changes of a node.

Change = tuple[str, str, tuple[Step, ...], ast.AST | None]

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
}
_SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_NEVER, _ALWAYS = ast.Constant(value=False), ast.Constant(value=True)


def _changes(place: _Place) -> Iterator[Change]:  # noqa: C901, PLR0912 - one case a kind of node
    node = place.node
    match node:
        case ast.Compare():
            yield from _compared(node)
        case ast.BoolOp():
            yield from _joined(node)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield _text(node), _text(node.operand), (), node.operand
        case ast.BinOp():
            yield from _calculated(node, place.parent)
        case ast.Constant():
            yield from _constants(node)
        case ast.Tuple(ctx=ast.Load()):
            yield from _ordered(node)
        case ast.Call():
            yield from _called(node)
        case ast.Slice():
            yield from _sliced(node)
        case ast.MatchOr():
            for at, pattern in enumerate(node.patterns):
                left = [one for one in node.patterns if one is not pattern]
                after = left[0] if len(left) == 1 else _like(node, patterns=left)
                yield _text(node), f"without {_text(node.patterns[at])}", (), after
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Delete():
            yield _text(node), "(nothing)", (), ast.Pass()
        case ast.Assign():
            yield from _assigned(node)
        case _:
            pass
    yield from _conditions(node)


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def _like(node: ast.AST, **fields: object) -> ast.AST:
    twin = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(twin, name, value)
    return twin


def _compared(node: ast.Compare) -> Iterator[Change]:
    for at, operator in enumerate(node.ops):
        for other in _COMPARISONS[type(operator)]:
            ops = [other() if index == at else one for index, one in enumerate(node.ops)]
            after = _like(node, ops=ops)
            yield _text(node), _text(after), (), after


def _joined(node: ast.BoolOp) -> Iterator[Change]:
    after = _like(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    yield _text(node), _text(after), (), after
    for at in range(len(node.values)):
        left = [one for index, one in enumerate(node.values) if index != at]
        after = left[0] if len(left) == 1 else _like(node, values=left)
        yield _text(node), _text(after), (), after


def _calculated(node: ast.BinOp, parent: ast.AST) -> Iterator[Change]:
    if isinstance(parent, ast.Call) and _name(parent.func) == "isinstance":
        for side in (node.left, node.right):
            yield _text(node), _text(side), (), side
    elif type(node.op) in _OPERATIONS:
        after = _like(node, op=_OPERATIONS[type(node.op)]())
        yield _text(node), _text(after), (), after


def _constants(node: ast.Constant) -> Iterator[Change]:
    value = node.value
    others: tuple[int | float, ...] = ()
    if isinstance(value, bool):
        others = (not value,)
    elif isinstance(value, int):
        others = (value + 1, value - 1)
    elif isinstance(value, float):
        others = (value * 2, value / 2) if value else (1.0,)
    for other in others:
        yield _text(node), repr(other), (), ast.Constant(value=other)


def _ordered(node: ast.Tuple) -> Iterator[Change]:
    for at in range(len(node.elts)):
        left = [one for index, one in enumerate(node.elts) if index != at]
        after = _like(node, elts=left)
        yield _text(node), _text(after), (), after
    for at in range(len(node.elts) - 1):
        if ast.dump(node.elts[at]) == ast.dump(node.elts[at + 1]):
            continue
        elts = list(node.elts)
        elts[at], elts[at + 1] = elts[at + 1], elts[at]
        after = _like(node, elts=elts)
        yield _text(node), _text(after), (), after


def _called(node: ast.Call) -> Iterator[Change]:
    name = _name(node.func)
    if name in _SWAPPED and isinstance(node.func, ast.Name):
        after = _like(node, func=ast.Name(id=_SWAPPED[name], ctx=ast.Load()))
        yield _text(node), _text(after), (), after
    if name in {"min", "max"} and len(node.args) > 1:
        for at in range(len(node.args)):
            left = [one for index, one in enumerate(node.args) if index != at]
            after = left[0] if len(left) == 1 else _like(node, args=left)
            yield _text(node), _text(after), (), after
    if name == "replace" or (name[:1].isupper() and name != "Log"):
        for at, keyword in enumerate(node.keywords):
            yield _text(node), f"without {keyword.arg}", (("keywords", at),), None


def _sliced(node: ast.Slice) -> Iterator[Change]:
    for name in ("lower", "upper"):
        if getattr(node, name) is not None:
            after = _like(node, **{name: None})
            yield _text(node), _text(after), (), after


def _assigned(node: ast.Assign) -> Iterator[Change]:
    """Removes an assignment to an attribute or an element; without one to a name the code would only fail to run."""
    if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
        for at, target in enumerate(node.targets[0].elts):
            if isinstance(target, ast.Attribute):
                targets = [one for index, one in enumerate(node.targets[0].elts) if index != at]
                values = [one for index, one in enumerate(node.value.elts) if index != at]
                after = _like(
                    node,
                    targets=[ast.Tuple(elts=targets, ctx=ast.Store())],
                    value=ast.Tuple(elts=values, ctx=ast.Load()),
                )
                yield _text(node), f"without {_text(target)}", (), after
        return
    for at, target in enumerate(node.targets):
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        if any(isinstance(one, ast.Attribute | ast.Subscript) for one in parts):
            alone = len(node.targets) == 1
            left = [one for index, one in enumerate(node.targets) if index != at]
            yield _text(node), f"without {_text(target)}", (), ast.Pass() if alone else _like(node, targets=left)


def _conditions(node: ast.AST) -> Iterator[Change]:
    """Lets a condition never or always hold, and negates an assertion."""
    match node:
        case ast.If() | ast.IfExp():
            yield from _fixed(node.test, (("test", None),))
        case ast.comprehension():
            for at, test in enumerate(node.ifs):
                yield from _fixed(test, (("ifs", at),))
        case ast.match_case(guard=ast.expr() as guard):
            yield from _fixed(guard, (("guard", None),))
        case ast.Assert():
            if not isinstance(node.test, ast.Compare):
                turned = ast.UnaryOp(op=ast.Not(), operand=node.test)
                yield f"assert {_text(node.test)}", f"assert not {_text(node.test)}", (("test", None),), turned
        case _:
            pass


def _fixed(test: ast.expr, path: tuple[Step, ...]) -> Iterator[Change]:
    yield f"if {_text(test)}", "never", path, _NEVER
    yield f"if {_text(test)}", "always", path, _ALWAYS
