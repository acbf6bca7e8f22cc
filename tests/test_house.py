"""The rules of the house: who may import whom, who may print, how long things may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    # "" is simko_mlx/__init__.py, which hands out public names of any layer, but imports them only
    # when they are asked for
    {"types", "config", "config_checks", "config_sources", "imports", ""},
    {
        "kernels",
        "graphs",
        "advantages",
        "advice",
        "hub",
        "interrupts",
        "metrics",
        "until",
        "weights_file",
    },
    {"losses", "batching", "data", "sandbox", "verifiers", "assets", "prompts"},
    {
        "adapters",
        "checkpoint",
        "cpu_decoding",
        "head_tap",
        "loggers",
        "model_files",
        "peft_adapter",
        "peft_format",
        "prefix",
        "recompute",
        "rope_settings",
        "rundir",
        "shared_prompts",
    },
    {
        "decoding",
        "forward",
        "learner",
        "microbatches",
        "policy",
        "rollout",
        "sampling",
        "selftest",
        "step",
    },
    {"memory", "planner", "planner_decoding"},
    {
        "collect",
        "curriculum",
        "data_report",
        "trainer",
        "evaluate",
        "export",
        "probe",
        "probe_advice",
        "recorded",
        "run_evaluations",
        "doctor",
    },
    {"cli"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
PURE = ("simko_mlx.types", "simko_mlx.sandbox", "simko_mlx.verifiers")
FILE_LINES, FUNCTION_LINES, COMMAND_LINES = 400, 60, 90
COMMANDS = ("train", "eval", "export", "push", "probe", "verify", "data", "plan", "doctor")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


SOURCES = sources("simko_mlx", "cli")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in SOURCES}


def part(module: str) -> str:
    """The layer's entry of a module: simko_mlx.data.files -> data."""
    names = module.split(".")
    return "cli" if names[0] == "cli" else ".".join(names[1:2])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def for_the_type_checker(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST, package: str, *, runtime_only: bool) -> Iterator[str]:
    """Absolute names of all that is imported in a module, wherever it stands."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - child.level + 1]
            start = ".".join([*(base if child.level else []), *filter(None, [child.module])])
            # `from simko_mlx import data` names a module, `from simko_mlx.types import X` doesn't.
            for alias in child.names:
                full = f"{start}.{alias.name}"
                yield full if full in NAMES else start
        elif not (runtime_only and for_the_type_checker(child)):
            yield from imports(child, package, runtime_only=runtime_only)


def imports_of(module: str, *, runtime_only: bool = False) -> set[str]:
    path = NAMES[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    return set(imports(tree(path), package, runtime_only=runtime_only))


def test_every_module_has_a_layer():
    unknown = {part(module) for module in NAMES} - set(LEVEL)
    assert not unknown, f"give {sorted(unknown)} a layer in {Path(__file__).name}"


@pytest.mark.parametrize("module", [m for m in NAMES if m != "simko_mlx"])
def test_imports_go_downwards(module):
    mine = part(module)
    for other in imports_of(module):
        if other in NAMES:
            assert LEVEL[part(other)] <= LEVEL[mine], f"{module} imports {other} from above"


def test_no_two_modules_import_each_other():
    graph = {
        module: {o for o in imports_of(module, runtime_only=True) if o in NAMES and o != module}
        for module in NAMES
    }
    graph["simko_mlx"] = set()  # lazily, see above
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for other in sorted(graph[module]):
            visit(other, (*path, module))
        done.add(module)

    for module in NAMES:
        visit(module, ())


@pytest.mark.parametrize("path", sources("simko_mlx"), ids=lambda p: p.name)
def test_the_library_neither_prints_nor_knows_the_command_line(path):
    foreign = {name.split(".")[0] for name in imports_of(module_name(path))}
    assert not foreign & {"click", "rich", "cli", "simko_mlx_cli"}
    called = {
        node.func.id
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "print" not in called


@pytest.mark.parametrize("module", [m for m in NAMES if m.startswith(PURE)])
def test_what_verifier_workers_load_is_free_of_mlx_and_numpy(module):
    found = {name.split(".")[0] for name in imports_of(module, runtime_only=True)}
    assert not found & {"mlx", "mlx_lm", "numpy"}


def test_verifier_workers_load_neither_mlx_nor_numpy_at_run_time():
    modules = [m for m in NAMES if m.startswith(PURE)]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "sys.exit(', '.join({'mlx', 'mlx.core', 'mlx_lm', 'numpy'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_line_uses_relative_imports_inside():
    for path in sources("cli"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith(("cli", "simko_mlx_cli")), path


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function below its signature and docstring."""
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_gets_too_long(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES
    if path.parent.name == "cli" and path.stem in COMMANDS:
        assert lines <= COMMAND_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert body_lines(node) <= FUNCTION_LINES, f"{node.name}, line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_except_swallows_everything(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert not broad or raises, f"line {node.lineno}"


def test_every_command_has_a_file():
    from cli.main import COMMANDS as listed

    assert set(listed) == set(COMMANDS)
    assert all((ROOT / "cli" / f"{name}.py").is_file() for name in listed)
