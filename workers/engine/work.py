"""What a job has to work with: its folders, its device, the network and the data."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from service.catalog import has_tokenizer
from service.specs import JobSpec
from workers.engine.failures import EngineError
from workers.engine.families import family_in, family_of
from workers.engine.families.loading import load_network, load_with_new_head
from workers.engine.reporter import Reporter
from workers.engine.tasks import TASKS, Settings, Task
from workers.engine.tasks.row_task import load_tokenizer
from workers.engine.tasks.text_classification import TextClassification

STORED = {"F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights that are saved as they came; all others are saved in float32."""


@dataclass(frozen=True)
class Work:
    """The folders of one job and its order."""

    folder: Path
    spec: JobSpec
    device: torch.device
    bfloat16: bool
    """Whether networks are trained in bfloat16; weights and figures stay in float32."""
    batch_divisor: int = 1
    """Into how many parts batches are divided, so that they take less memory."""

    @property
    def inference_dtype(self) -> torch.dtype:
        """What PyTorch's latency is measured in; on a CPU bfloat16 only where it was asked for."""
        asked = self.spec.precision == "bfloat16" or self.device.type == "cuda"
        return torch.bfloat16 if asked and self.bfloat16 else torch.float32

    @property
    def model(self) -> Path:
        """The model as uploaded."""
        return self.folder / "in" / "model"

    @property
    def dataset(self) -> Path:
        """The splits as JSONL; missing where the job needs none."""
        return self.folder / "in" / "dataset"

    @property
    def out(self) -> Path:
        """What is published."""
        return self.folder / "out"

    @property
    def scratch(self) -> Path:
        """What is not."""
        return self.folder / "scratch"

    @property
    def has_data(self) -> bool:
        """Whether there are rows to read."""
        return self.dataset.is_dir() and any(self.dataset.glob("*.jsonl"))

    def settings(self, network: PreTrainedModel) -> Settings:
        """How rows become batches for `network`."""
        spec = self.spec
        longest = min(spec.max_length or 128, family_of(network).longest(network))
        return Settings(longest, spec.seed, spec.stride, spec.beams, self.batch_divisor)

    @property
    def stored(self) -> torch.dtype:
        """The type that weights are saved in: that of the upload, so that sizes before and after compare."""
        with safe_open(min(self.model.glob("*.safetensors")), framework="pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 # it is no mapping
        return next((STORED[kind] for kind in STORED if kinds <= {kind, "I64"}), torch.float32)


def prepare(folder: Path, spec: JobSpec, max_threads: int | None, batch_divisor: int = 1) -> Work:
    """Sets PyTorch up for the job; raises EngineError DEVICE_NOT_AVAILABLE."""
    cuda = torch.cuda.is_available()
    if spec.device == "cuda" and not cuda:
        raise EngineError("DEVICE_NOT_AVAILABLE", "this worker has no CUDA device; use auto or cpu", blame="user")
    device = torch.device("cuda" if cuda and spec.device != "cpu" else "cpu")
    torch.manual_seed(spec.seed)
    torch.set_num_threads(max(1, min(os.cpu_count() or 1, max_threads or 1 << 10)))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # for debugging, and slow
    torch.set_float32_matmul_precision("highest" if spec.precision == "float32" else "high")
    (folder / "scratch").mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    bfloat16 = spec.precision == "bfloat16" or (spec.precision == "auto" and _trains_bfloat16(device))
    return Work(folder, spec, device, bfloat16, batch_divisor)


def device_facts(device: torch.device) -> dict[str, Any]:
    """What `engine_facts` cannot say without PyTorch: a GPU's name, and the bytes that were taken on it at most."""
    if device.type != "cuda":
        return {}
    return {"device": torch.cuda.get_device_name(device), "peak_memory": torch.cuda.max_memory_allocated(device)}


def _trains_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32: with AVX-512 alone a step on an Intel Xeon took 1.5 times as long."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))


def load(work: Work, reporter: Reporter) -> tuple[PreTrainedModel, Task | None]:
    """The network on its device, and the task where there is a data set; warns of what the data lacks."""
    kind = TASKS[work.spec.task]
    network = _load_network(work, kind)
    if kind is TextClassification and family_of(network).stacks[0].name == "decoder":
        name_padding(network, work.model)
    # Eager attention is about 1.5 times faster than sdpa on short sequences without a GPU.
    network.set_attn_implementation("eager" if work.device.type == "cpu" else "sdpa")
    network.config.use_cache = False
    network.to(work.device)  # type: ignore[arg-type]
    if not work.has_data:
        return network, None
    task = kind(work.dataset, work.model, network, work.settings(network))
    for code, message in task.warnings:
        reporter.warning(code, message)
    return network, task


def _load_network(work: Work, task: type[Task]) -> PreTrainedModel:
    family_in(work.model)
    if work.spec.baseline is None:
        return load_network(work.model, task.auto)
    labels = task.labels_of_new_head(work.dataset, _labels_of_upload(work.model))
    return load_with_new_head(
        work.model, task.auto, labels=labels, problem_type=task.problem_type(work.dataset), seed=work.spec.seed
    )


def _labels_of_upload(model: Path) -> list[str]:
    """Labels of a head that came with the model; empty where none did."""
    config = json.loads((model / "config.json").read_text())
    if not any("Classification" in name for name in config.get("architectures") or ()):
        return []
    names: dict[str, str] = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [names[index] for index in sorted(names, key=int)]


def name_padding(network: PreTrainedModel, model: Path) -> None:
    """Gives the config of a decoder a padding token where it has none, by which rows of a batch find their last token.

    That of the tokenizer, or the end of texts, which is never asked what follows it. Raises EngineError MODEL_UNUSABLE
    where no token will do.
    """
    config = network.config
    if config.pad_token_id is not None:
        return
    tokenizer = load_tokenizer(model) if has_tokenizer([path.name for path in model.iterdir()]) else None
    found = [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")] + [config.eos_token_id]
    usable = [token for token in found if isinstance(token, int) and token < config.vocab_size]
    if not usable:
        message = "config.json names no pad_token_id, without which rows of a batch cannot be classified; add it"
        raise EngineError("MODEL_UNUSABLE", message, blame="user")
    config.pad_token_id = usable[0]


@torch.no_grad()
def round_weights(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Rounds to the type that weights are saved in, so that all figures are those of the saved network.

    Zeros lose their sign, which products with a mask leave and the compressed form would have to keep.
    """
    for parameter in network.parameters():
        parameter.copy_(parameter.to(dtype)).add_(0.0)
