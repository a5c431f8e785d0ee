"""Accuracy after cutting heads and neurons: `python -m tests.benchmarks.structured_bench --model M --data D --cache C`.

Prints one table from one run: accuracy on test one-shot and after one epoch on a part of train, at two and four times
fewer multiply-adds of the encoder, of our targets, of Torch-Pruning (Taylor, uniform), of whole layers dropped and of
chance, mean over seeds, with the share of multiply-adds left and the measured speed-up in PyTorch on one thread. Every
method and seed is a fresh process; all share their rows, their recipe and the code that trains and evaluates. M is a
folder with a BERT classifier, D one with train, validation and test as JSONL of `text` and `label`. Torch-Pruning goes
into a folder of its own below C. Layers cannot be cut four times: the next larger whole number of layers is shown.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from service.specs import Distillation, Target, Training
from workers.engine.benchmark import inputs_of
from workers.engine.families import family_of
from workers.engine.recovery import Course, train
from workers.engine.replica import replica
from workers.engine.reporter import Reporter
from workers.engine.structures import STRUCTURES
from workers.engine.targets import STRUCTURES_CUT, Bill, prune_units
from workers.engine.tasks import TASKS, Settings, Task

PEER = "torch-pruning==1.6.1"
LENGTH = 64
CALIBRATION_ROWS = 4000
"""All rows that fine-tuning sees."""
BATCH = 32
REPETITIONS = 30
RECIPE = Training(epochs=1, learning_rate=1e-4)
DISTILLATION = Distillation(temperature=2.0, weight=0.5)

Cutter = Callable[[PreTrainedModel, Task, float, int], None]
"""Cuts a network in place: network, task, share of the multiply-adds that is left, seed."""


def main() -> None:
    """Run every line in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is fetched; kept")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.25], help="multiply-adds left")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4000, help="rows of train to calibrate and fine-tune with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="where accuracy is measured")
    parser.add_argument("--one-shot-only", action="store_true")
    parser.add_argument("--line", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.line:
        print(json.dumps(line(arguments, arguments.line[0], int(arguments.line[1]))))
        return
    if "torch-pruning" in arguments.methods:
        fetch_peer(arguments.cache / "peer")
    names = f"{'method':28}{'left':>7}{'one-shot':>10}{'loses':>7}{'+ 1 epoch':>11}{'loses':>7}"
    print(f"{names}{'speed-up':>10}{'seconds':>9}", flush=True)
    for method in arguments.methods:
        seeds = [in_own_process(arguments, method, seed) for seed in range(arguments.seeds)]
        for place in range(len(arguments.shares)):
            print_mean(method, [found["dense"] for found in seeds], [found["cuts"][place] for found in seeds])


def fetch_peer(folder: Path) -> None:
    """Installs the peer without what it depends on, which is here."""
    if not folder.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PEER]
        subprocess.run(install, check=True)


def in_own_process(arguments: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Figures of one method and seed."""
    paths = [str(Path.cwd()), *([str(arguments.cache / "peer")] if method == "torch-pruning" else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, "-m", "tests.benchmarks.structured_bench", *sys.argv[1:], "--line", method, str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{method}, seed {seed}: {found}", file=sys.stderr, flush=True)
    return found


def print_mean(method: str, dense: list[float], cuts: list[dict[str, float]]) -> None:
    """A line of the table: accuracies in percent, means over seeds."""
    mean = {name: statistics.mean(cut[name] for cut in cuts) for name in cuts[0]}
    original = statistics.mean(dense)
    print(
        f"{method:28}{mean['left']:7.3f}{100 * mean['one_shot']:10.2f}{100 * (original - mean['one_shot']):7.2f}"
        f"{100 * mean['tuned']:11.2f}{100 * (original - mean['tuned']):7.2f}{mean['speedup']:10.2f}"
        f"{mean['seconds']:9.0f}",
        flush=True,
    )


def line(arguments: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """One method under one seed at every share."""
    torch.set_num_threads(arguments.threads)
    dense = load(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        data = part_of(arguments.data, Path(scratch), arguments.rows, seed)
        task = TASKS["text-classification"](data, arguments.model, dense, Settings(LENGTH, seed))
    cuts = [one_cut(arguments, dense, task, method, share, seed) for share in arguments.shares]
    return {"dense": accuracy(dense, task, arguments.split), "cuts": cuts}


def one_cut(
    arguments: argparse.Namespace, dense: PreTrainedModel, task: Task, method: str, share: float, seed: int
) -> dict[str, float]:
    """Cuts, evaluates, fine-tunes, evaluates again, and times."""
    network, bill = replica(dense), Bill("flops", LENGTH)
    begun = time.perf_counter()
    METHODS[method](network, task, share, seed)
    found = {"left": bill.total(network) / bill.total(dense), "seconds": time.perf_counter() - begun}
    found["one_shot"] = found["tuned"] = accuracy(network, task, arguments.split)
    if not arguments.one_shot_only:
        distillation = DISTILLATION if method == "target" else None
        course = Course("finetuning", RECIPE, RECIPE.epochs, seed, distillation=distillation)
        with Path(os.devnull).open("w") as nowhere:
            train(network, task, course, Reporter(nowhere), dense)
        found["tuned"] = accuracy(network, task, arguments.split)
    return found | {"speedup": speedup(dense, network)}


def load(folder: Path) -> PreTrainedModel:
    """The classifier in float32."""
    network: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    network.train(False)
    return network


def part_of(data: Path, folder: Path, rows: int, seed: int) -> Path:
    """The data set with so many rows of train, chosen by the seed."""
    for file in data.glob("*.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        if file.stem == "train" and len(lines) > rows:
            lines = random.Random(seed).sample(lines, rows)
        (folder / file.name).write_text("".join(lines))
    return folder


def accuracy(network: PreTrainedModel, task: Task, split: str) -> float:
    """Share of rows that are right."""
    return float(task.evaluate(network, split).metrics()["accuracy"])


def speedup(dense: PreTrainedModel, network: PreTrainedModel) -> float:
    """Medians of the processor time of one thread for one full sequence, the two in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    inputs = inputs_of(dense, 1, LENGTH)
    spent: tuple[list[float], list[float]] = ([], [])
    network.eval()
    with torch.inference_mode():
        for _ in range(REPETITIONS):
            for side, seconds in zip((dense, network), spent, strict=True):
                begun = time.thread_time()
                side(**inputs)
                seconds.append(time.thread_time() - begun)
    torch.set_num_threads(threads)
    return statistics.median(spent[0]) / statistics.median(spent[1])


def by_target(network: PreTrainedModel, task: Task, share: float, _seed: int) -> None:
    """Ours."""
    target = Target(metric="flops", ratio=share, samples=CALIBRATION_ROWS)
    prune_units(network, task, target, share * Bill("flops", LENGTH).total(network), LENGTH)


def by_chance(network: PreTrainedModel, _task: Task, share: float, seed: int) -> None:
    """The same share of heads and neurons in every layer, any of them."""
    chance = torch.Generator().manual_seed(seed)
    for name in STRUCTURES_CUT:
        structure = STRUCTURES[name]
        keep = []
        for group in structure.groups(network):
            order = torch.randperm(group.units, generator=chance)
            keep.append(order < round(share * group.units))
        structure.cut(network, keep)


def by_layers(network: PreTrainedModel, task: Task, share: float, _seed: int) -> None:
    """The layers that are right most often on rows of train, of all sets of that many."""
    layers = STRUCTURES["layers"]
    count = layers.groups(network)[0].units
    best = max(subsets(count, round(share * count + 1e-9)), key=lambda kept: right(network, task, kept))
    layers.cut(network, [mask_of(best, count)])


def subsets(count: int, kept: int) -> Iterator[tuple[int, ...]]:
    """All sets of layers that keep the first."""
    return ((0, *rest) for rest in itertools.combinations(range(1, count), kept - 1))


def mask_of(kept: tuple[int, ...], count: int) -> torch.Tensor:
    """Booleans of (count,)."""
    return torch.tensor([index in kept for index in range(count)])


@torch.inference_mode()
def right(network: PreTrainedModel, task: Task, kept: tuple[int, ...]) -> int:
    """Rows of a sample that the network with these layers gets right."""
    shorter = replica(network)
    layers = STRUCTURES["layers"]
    layers.cut(shorter, [mask_of(kept, layers.groups(shorter)[0].units)])
    batches = task.sample(CALIBRATION_ROWS // 4, BATCH)
    return sum(int((task.logits(shorter, batch).argmax(-1) == batch["labels"]).sum()) for batch in batches)


def by_torch_pruning(network: PreTrainedModel, task: Task, share: float, _seed: int) -> None:
    """The peer's Taylor criterion, the same share in every layer, hidden size kept."""
    import torch_pruning  # type: ignore[import-not-found]

    layers = family_of(network).layers(network)
    projections = [linear for layer in layers for linear in layer.attentions[0].inputs]
    heads = {linear: int(network.config.num_attention_heads) for linear in projections}
    kept = [module for layer in layers for module in (layer.attentions[0].output, layer.ffn_out)]
    pruner = torch_pruning.pruner.BasePruner(
        network,
        inputs_of(network, 2, 16),
        importance=torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=False,
        pruning_ratio=1 - share,
        head_pruning_ratio=1 - share,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=[network.get_submodule("classifier"), network.get_submodule("bert.pooler"), *kept],
        output_transform=lambda output: output.logits.sum(),
    )
    network.zero_grad()
    rows = task.sample_size(CALIBRATION_ROWS)
    for batch in task.sample(rows, BATCH):
        (task.loss(network, batch) * task.size(batch) / rows).backward()
    pruner.step()
    network.zero_grad(set_to_none=True)
    for layer in layers:
        attention: Any = layer.attentions[0].module
        attention.num_attention_heads = pruner.num_heads[layer.attentions[0].inputs[0]]
        attention.all_head_size = attention.num_attention_heads * attention.attention_head_size


METHODS: dict[str, Cutter] = {
    "target": by_target,
    "target, no distillation": by_target,
    "torch-pruning": by_torch_pruning,
    "layers": by_layers,
    "random": by_chance,
}


if __name__ == "__main__":
    main()
