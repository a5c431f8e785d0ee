"""The lineage of a model as a tree of lines."""

from typing import Any

from rich.console import Console
from rich.tree import Tree

from service.commands.show import size_of

Json = dict[str, Any]


def draw_lineage(lineage: Json, *, width: int | None = None) -> None:
    """Print the tree: one model a line, the one that was asked about marked."""
    trees: dict[str, Tree] = {}
    for node in lineage["nodes"]:
        told = _line(node, lineage["model_id"])
        parent = trees.get(node["parent_model_id"])
        trees[node["id"]] = Tree(told) if parent is None else parent.add(told)
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    console.print(trees[lineage["root_id"]])
    if lineage["truncated"]:
        console.print("… and more: only the nearest are shown")


def _line(node: Json, asked: str) -> str:
    parts = [node["id"], node["name"], None if node["state"] == "ready" else node["state"]]
    if node["parameters"] is not None:
        parts.append(f"{node['parameters']:,} parameters, {size_of(node['size'])}")
    if job := node["job"]:
        verdict = {True: ", passed", False: ", MISSED", None: ""}[job["passed"]]
        parts.append(f"({job['cut'] or job['name']}; {job['status']}{verdict})")
    return ("* " if node["id"] == asked else "") + "  ".join(part for part in parts if part)
