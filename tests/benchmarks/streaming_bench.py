"""Magnitude pruning of weight files against a copy and other tools: `python tests/benchmarks/streaming_bench.py`.

Cuts half of the weights inside the layers of Llamas made from a seed (float32): a large one against `shutil.copyfile`,
a smaller one against `torch.nn.utils.prune` too (50 bytes of memory a weight) and against Wanda of llm-compressor on 8
samples of 32 tokens, which goes into a virtual environment of its own under `--cache`. Prints ratios to the copy of
the same file. Every run is a fresh process; time is that of loading, pruning and saving without imports, memory the
peak of the whole process. Before each run the source is read into the page cache and what was written goes to disk;
no side syncs. Exits with 1 when a bar is missed: 500 MB, five copies, and every peer in both time and memory.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeAlias

import numpy as np

from workers.engine.streaming.shards import magnitudes, parts, read_shards

Side: TypeAlias = tuple[str, str]
"""An interpreter and what it runs."""

HIDDEN, WIDTH, VOCABULARY = 2048, 8192, 1000
LAYER = {
    **{f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{f"mlp.{name}_proj.weight": (WIDTH, HIDDEN) for name in ("gate", "up")},
    "mlp.down_proj.weight": (HIDDEN, WIDTH),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
}
LAYER_BYTES = 4 * sum(int(np.prod(shape)) for shape in LAYER.values())

MAX_PEAK, MAX_COPIES = 500e6, 5.0

RUN = """
import json, sys, time
from pathlib import Path
source, target = Path(sys.argv[1]), Path(sys.argv[2])
{prepare}
begun = time.perf_counter()
{work}
seconds = time.perf_counter() - begun
peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("\\n" + json.dumps({{"seconds": seconds, "peak": peak}}))
"""
COPY = RUN.format(
    prepare="import shutil",
    work='shutil.copyfile(source / "model.safetensors", target / "model.safetensors")',
)
OURS = RUN.format(
    prepare="from workers.engine.streaming import prune_shards",
    work="""
prune_shards(source, target, share=0.5, pattern="unstructured", scope="global", block=1,
             prunable=lambda name, shape: ".layers." in name, progress=lambda share: None)
""",
)
TORCH = RUN.format(
    prepare="""
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune
""",
    work="""
tensors, modules = load_file(source / "model.safetensors"), {}
for name in [name for name, tensor in tensors.items() if ".layers." in name and tensor.dim() == 2]:
    modules[name] = nn.Module()
    modules[name].weight = nn.Parameter(tensors.pop(name))
pairs = [(module, "weight") for module in modules.values()]
prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.5)
for pair in pairs:
    prune.remove(*pair)
save_file(tensors | {name: module.weight.detach() for name, module in modules.items()}, target / "model.safetensors")
""",
)
WANDA = RUN.format(
    prepare="""
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import WandaPruningModifier
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
words = {str(number): number for number in range(1000)}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "0")), pad_token="0")
ids = torch.randint(0, 1000, (8, 32), generator=torch.Generator().manual_seed(0))
rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
""",
    work="""
network = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
oneshot(model=network, processor=tokenizer, dataset=rows, num_calibration_samples=8, max_seq_length=32,
        recipe=[WandaPruningModifier(sparsity=0.5, targets=["Linear"], ignore=["lm_head"])])
network.save_pretrained(target)
""",
)
WANDA_NEEDS = "loguru pyyaml requests tqdm datasets accelerate nvidia-ml-py pillow pydantic psutil".split()


def main() -> None:
    """Make the models, run the sides in turn, print the table, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the file against the copy alone")
    parser.add_argument("--peer-gigabytes", type=float, default=1.0, help="size of the file against the peers")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of ours and the copy; peers run once")
    parser.add_argument("--without", nargs="*", default=[], choices=["torch", "llm-compressor"], help="peers left out")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "secateur-bench")
    parser.add_argument("--torch-pip-args", default="", help="where pip takes torch from, like `--index-url URL`")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    arguments = parser.parse_args()
    ours: dict[str, Side] = {"copy": (sys.executable, COPY), "secateur": (sys.executable, OURS)}
    peers = {}
    if "torch" not in arguments.without:
        peers["torch.nn.utils.prune"] = (sys.executable, TORCH)
    if "llm-compressor" not in arguments.without:
        peers["llm-compressor Wanda"] = (str(with_wanda(arguments.cache, arguments.torch_pip_args.split())), WANDA)
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as name:
        runs = [compare(Path(name) / "model", arguments.gigabytes, ours, {}, arguments.repetitions)]
        if peers:
            runs.append(compare(Path(name) / "model", arguments.peer_gigabytes, ours, peers, arguments.repetitions))
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=2))
    sys.exit(not judge(runs))


def compare(
    folder: Path, gigabytes: float, often: dict[str, Side], once: dict[str, Side], repetitions: int
) -> dict[str, Any]:
    """Medians of the sides on a new model, with one table of them printed."""
    size = make_llama(folder, math.ceil(gigabytes * 1e9 / LAYER_BYTES))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in often | once}
    for repetition in range(repetitions):
        for name, side in (often if repetition else often | once).items():
            runs[name].append(run(side, folder, folder.with_name("pruned")))
    medians = {
        name: {figure: statistics.median(one[figure] for one in all_runs) for figure in all_runs[0]}
        for name, all_runs in runs.items()
    }
    tabulate(f"{size / 1e9:.2f} GB", medians)
    return {"bytes": size, "sides": medians, "runs": runs}


def tabulate(title: str, medians: dict[str, dict[str, float]]) -> None:
    """Prints seconds and peaks with their ratios."""
    copy, mine = medians["copy"], medians["secateur"]
    print(f"\n{title:22}{'seconds':>9}{'x copy':>9}{'x ours':>9}{'peak MB':>10}{'x ours':>9}{'zeros':>9}")
    for name, side in medians.items():
        seconds, peak = side["seconds"], side["peak"]
        print(
            f"{name:22}{seconds:9.2f}{seconds / copy['seconds']:9.2f}{seconds / mine['seconds']:9.2f}"
            f"{peak / 1e6:10.0f}{peak / mine['peak']:9.2f}{side['zeros']:9.2%}",
            flush=True,
        )


def run(side: Side, source: Path, target: Path) -> dict[str, float]:
    """One fresh process from a warm and clean page cache: `seconds`, `peak` in bytes and the share of `zeros`."""
    rmtree(target, ignore_errors=True)
    target.mkdir()
    os.sync()
    with (source / "model.safetensors").open("rb") as file:
        while file.read(1 << 24):
            pass
    interpreter, script = side
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [interpreter, "-c", script, str(source), str(target)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        sys.exit(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "zeros": share_of_zeros(target)}


def share_of_zeros(folder: Path) -> float:
    """Of the weights inside the layers; peers do not always prune what they were asked to."""
    matrices = [t for s in read_shards(folder) for t in s.tensors if ".layers." in t.name and t.is_matrix]
    left = sum(np.count_nonzero(magnitudes(bits, t.dtype)) for t in matrices for _, bits in parts(t, (1, 1)))
    return 1 - left / sum(tensor.size for tensor in matrices)


def make_llama(folder: Path, layers: int) -> int:
    """A Llama of random float32 weights, of other spread in every matrix; returns the bytes of its one weight file."""
    folder.mkdir(exist_ok=True)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    shapes |= {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in LAYER.items()}
    shapes["model.norm.weight"] = (HIDDEN,)
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        header[name], at = {"dtype": "F32", "shape": shape, "data_offsets": (at, end)}, end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in random_weights(list(shapes.values())):
            file.write(values.data)
    (folder / "config.json").write_text(json.dumps(llama_config(layers)))
    return 8 + len(text) + at


def random_weights(shapes: list[tuple[int, ...]]) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """Ones for vectors, which scale; normal weights for matrices."""
    chance = np.random.default_rng(0)
    for shape in shapes:
        spread = np.float32(chance.uniform(0.01, 0.05))
        yield np.ones(shape, np.float32) if len(shape) == 1 else chance.standard_normal(shape, np.float32) * spread


def llama_config(layers: int) -> dict[str, Any]:
    """Its `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def with_wanda(cache: Path, torch_pip_args: list[str]) -> Path:
    """The interpreter of a virtual environment with llm-compressor, made where it is missing.

    Its pins exclude the transformers that everybody else here uses, with which it works: so it goes in without them.
    """
    folder = cache / "llm-compressor"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *torch_pip_args, "torch==2.13.0"], check=True)
        subprocess.run([*pip, "transformers==5.23.0", *WANDA_NEEDS], check=True)
        subprocess.run([*pip, "--no-deps", "llmcompressor==0.14.0.1", "compressed-tensors==0.19.*"], check=True)
        done.touch()
    return python


def judge(runs: list[dict[str, Any]]) -> bool:
    """Prints each bar and whether it holds; True where all do."""
    bars = {}
    for figures in runs:
        size, sides = f"{figures['bytes'] / 1e9:.2f} GB", figures["sides"]
        mine = sides["secateur"]
        bars[f"{size}: peak under {MAX_PEAK / 1e6:.0f} MB"] = mine["peak"] < MAX_PEAK
        bars[f"{size}: at most {MAX_COPIES:.0f} copies"] = mine["seconds"] <= MAX_COPIES * sides["copy"]["seconds"]
        for name in sides.keys() - {"copy", "secateur"}:
            ahead = mine["seconds"] < sides[name]["seconds"] and mine["peak"] < sides[name]["peak"]
            bars[f"{size}: faster than {name}, in less memory"] = ahead
    print()
    for bar, holds in bars.items():
        print(f"{'holds' if holds else 'MISSED':8}{bar}")
    return all(bars.values())


if __name__ == "__main__":
    main()
