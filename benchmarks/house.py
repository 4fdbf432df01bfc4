"""Measure the structure of the package: rooms, floors, circles, sizes, and the rooms that a round enters.

    python benchmarks/house.py                          # this checkout
    python benchmarks/house.py --checkout ../before     # another checkout, whatever its structure

A room is a folder of fedssl/, or a loose module beside these folders. The number of floors is the length of the longest
chain of imports from room to room. Every import counts, also imports inside functions and imports of types only.
"""

import argparse
import ast
import functools
import re
import statistics
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

LINKED = ("clients", "strategies")
"""These folders of the repository are imported as packages of fedssl."""

WORDS = ("weights_begun_anew", "by_class")
"""Words whose lines are counted: a value that the server keeps between rounds, and a number that clients measure."""

TRACED = """
import sys
from pathlib import Path

home = str(Path.cwd()) + "/"
rooms, order, depth = set(), [], [0]
names = ("_run_round", "run_round")

def watch(frame, event, argument):
    code = frame.f_code
    if not code.co_filename.startswith((home + "fedssl/", home + "clients/", home + "strategies/")):
        return
    if code.co_name in names:
        depth[0] += {"call": 1, "return": -1}.get(event, 0)
    if depth[0] and event == "call":
        parts = code.co_filename[len(home):].removeprefix("fedssl/").split("/")
        room = parts[0].removesuffix(".py")
        if not order or order[-1] != room:
            order.append(room)
        rooms.add(room)

import fedssl
experiment = fedssl.Experiment.load("experiments/digits/fixmatch.toml").with_settings(
    "rounds=2", "engine.kind=serial", "record.report=false", "federation.sample=2"
)
import tempfile
with tempfile.TemporaryDirectory() as folder:
    import logging, contextlib, io, inspect
    with contextlib.redirect_stdout(io.StringIO()):
        sys.setprofile(watch)
        try:
            fedssl.run(experiment, out=Path(folder, "run"))
        finally:
            sys.setprofile(None)
print(len(rooms), len(order), *sorted(rooms))
"""
"""A program that runs two rounds and prints how many rooms they enter, how often the room changes, and the rooms."""


def modules(checkout: Path) -> dict[str, Path]:
    """Return the file of every module, by the module's dotted name."""
    found = {}
    for top in ("fedssl", *LINKED):
        for path in sorted((checkout / top).rglob("*.py")):
            parts = path.relative_to(checkout / top).with_suffix("").parts
            if top == "fedssl" and parts[0] in LINKED:
                continue
            above = ["fedssl"] if top == "fedssl" else ["fedssl", top]
            found[".".join([*above, *parts]).removesuffix(".__init__")] = path
    return found


def imports(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Yield the known modules that a file imports, anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from {whole if whole in known else node.module} & known
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known


def room_of(module: str) -> str:
    """Return the room of a module: the name that follows ``fedssl``, or an empty text for the package itself."""
    return module.split(".")[1] if "." in module else ""


def room_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Return the rooms that each room imports; the package's own `__init__` belongs to no room."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module, path in files.items():
        here = room_of(module)
        graph[here] |= {room_of(m) for m in imports(ast.parse(path.read_text()), set(files))}
        graph[here] -= {here, ""}
    graph.pop("", None)
    return dict(graph)


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Return the rooms that import themselves by way of other rooms."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        open_ends = [start]
        while open_ends:
            new = graph.get(open_ends.pop(), set()) - seen
            seen |= new
            open_ends += new
        return seen

    return {room for room in graph if room in reached(room)}


def floors(graph: dict[str, set[str]]) -> int:
    """Return the number of floors of a plan without circles."""

    @functools.cache
    def height(room: str) -> int:
        return 1 + max((height(below) for below in graph.get(room, ())), default=0)

    return max(height(room) for room in graph)


def functions(files: dict[str, Path]) -> list[tuple[int, str]]:
    """Return the length in lines and the dotted name of every function."""
    return [
        (node.end_lineno - node.lineno + 1, f"{module}.{node.name}")
        for module, path in files.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]


def contract_lines(checkout: Path) -> int:
    """Return the number of layers, modules and exceptions in the import contract."""
    with (checkout / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    keys = ("layers", "source_modules", "forbidden_modules", "ignore_imports")
    return sum(len(contract.get(key, [])) for contract in contracts for key in keys)


def mentions(files: dict[str, Path], word: str) -> tuple[int, int]:
    """Return the number of lines that contain a word, and the number of their files."""
    counts = [len(re.findall(rf"^.*\b{word}\b.*$", p.read_text(), re.M)) for p in files.values()]
    return sum(counts), sum(count > 0 for count in counts)


def main() -> None:
    """Print one figure per line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    checkout = parser.parse_args().checkout.resolve()
    files = modules(checkout)
    graph = room_graph(files)
    loose = [m for m, p in files.items() if p.parent == checkout / "fedssl"]
    sizes = sorted((len(p.read_text().splitlines()), m) for m, p in files.items())
    lengths = sorted(functions(files))
    traced = subprocess.run(
        [sys.executable, "-c", TRACED],
        cwd=checkout,
        env={"PYTHONPATH": str(checkout), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    knot = circles(graph)
    figures = {
        "files": len(files),
        "lines": sum(size for size, _ in sizes),
        "loose files": len(loose),
        "rooms (folders)": len({room_of(m) for m in files} - {m.split(".")[-1] for m in loose} - {""}),
        "floors": "none: they form circles" if knot else floors(graph),
        "rooms in circles": f"{len(knot)} {' '.join(sorted(knot))}",
        "entries of the import contract": contract_lines(checkout),
        "largest file": "{} {}".format(*sizes[-1]),
        "median file": statistics.median(size for size, _ in sizes),
        "largest function": "{} {}".format(*lengths[-1]),
        "median function": statistics.median(length for length, _ in lengths),
        "functions over 50 lines": sum(length > 50 for length, _ in lengths),
        "rooms entered by a round": f"{traced[0]}: {' '.join(traced[2:])}",
        "changes of room in two rounds": traced[1],
        **{f"lines that name {word!r}": "{} in {} files".format(*mentions(files, word)) for word in WORDS},
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
