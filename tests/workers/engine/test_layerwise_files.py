"""Cutting and judging networks that stay in their files: the same numbers as in memory, and no memory to speak of."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.workers.engine.tiny import tiny_network
from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.families.loading import load_network
from workers.engine.layerwise import Method, SparseGpt, Wanda, prune_blocks
from workers.engine.layerwise.files import AUTO, FiledNetwork, prune_blocks_on_disk
from workers.engine.layerwise.perplexity import evaluate_on_disk
from workers.engine.streaming import verify_shards
from workers.engine.streaming.shards import read_shards
from workers.engine.tasks.row_task import IGNORED

KINDS = ("llama", "gpt2", "qwen2", "qwen3", "mistral")
Save = Callable[..., Path]


def rows() -> list[dict[str, Tensor]]:
    """Three batches with labels; in the first a row is padded."""
    chance = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(1, 120, (12, 13), generator=chance), torch.ones(12, 13, dtype=torch.long)
    mask[3, 9:] = 0
    labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
    parts = zip(ids[:, :-1].split(4), mask[:, :-1].split(4), labels.split(4), strict=True)
    return [{"input_ids": i, "attention_mask": m, "labels": wanted} for i, m, wanted in parts]


def inputs() -> list[dict[str, Tensor]]:
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in rows()]


def live(folder: Path) -> PreTrainedModel:
    network = load_network(folder, AUTO)
    network.set_attn_implementation("eager")
    return network


def losses(network: PreTrainedModel) -> list[float]:
    """Sum of losses of every row."""
    found: list[Tensor] = []
    for batch, given in zip(rows(), inputs(), strict=True):
        with torch.no_grad():
            scores = network(**given).logits.flatten(0, 1)
        found += functional.cross_entropy(scores, batch["labels"].flatten(), reduction="none").view(4, -1).sum(1)
    return [float(loss) for loss in found]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A tiny network in several files."""

    def saved(kind: str, *, tied: bool = True, dtype: torch.dtype = torch.float32, head: bool = True) -> Path:
        network: Any = tiny_network(kind)
        network.config.tie_word_embeddings = tied
        if tied:
            network.tie_weights()
        else:
            network.lm_head.weight = nn.Parameter(torch.randn_like(network.lm_head.weight) * 0.2)
        folder = tmp_path / "model"
        (network if head else network.base_model).to(dtype).save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        return folder

    return saved


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tied", "dtype", "method"),
    [
        (True, torch.float32, Wanda(spread=0.1)),
        (False, torch.bfloat16, SparseGpt()),
        (False, torch.float16, Wanda(refit_steps=0, pattern=(2, 4))),
    ],
)
def test_the_same_weights_as_in_memory(kind: str, tied: bool, dtype: torch.dtype, method: Method, save: Save) -> None:
    source = save(kind, tied=tied, dtype=dtype)
    target = source.with_name("cut")
    shutil.copytree(source, target)
    network = live(source)
    told: list[float] = []
    prune_blocks(
        network, family_of(network).sides(network)[0].modules, inputs(), method, lambda _share: None, stored=dtype
    )
    report = prune_blocks_on_disk(FiledNetwork(target), inputs(), method, told.append)
    found = live(target).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())
    assert {value.dtype for file in target.glob("*.safetensors") for value in load_file(file).values()} == {dtype}
    verify_shards(source, target, report, refitted=True)
    assert report.zeros == pytest.approx(report.weights / 2, abs=8) and report.weights > 10_000
    assert told == sorted(told) and told[-1] == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_same_perplexity_as_in_memory(kind: str, tied: bool, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(kind, tied=tied)
    done: list[int] = []
    # Groups of less than all batches, and a vocabulary and tokens that no part divides.
    monkeypatch.setattr("workers.engine.layerwise.perplexity.HELD", 4 * 32 * 60)
    monkeypatch.setattr("workers.engine.layerwise.perplexity.SCORED", 25)
    monkeypatch.setattr("workers.engine.layerwise.files.TABLE_ROWS", 50)
    found, expected = evaluate_on_disk(FiledNetwork(folder), rows(), done.append), losses(live(folder))
    assert done == [8, 4]
    tokens = [12] * 3 + [8] + [12] * 8
    assert found.loss == pytest.approx(sum(expected) / sum(tokens), rel=1e-5)
    assert found.rows == 12
    for row in range(12):
        (alone,) = found.resampled(torch.tensor([row]).numpy())
        assert alone == pytest.approx(float(torch.tensor(expected[row] / tokens[row]).exp()), rel=1e-4)


def test_a_network_that_was_saved_without_its_head(save: Save) -> None:
    folder = save("gpt2", head=False)
    assert all(not tensor.name.startswith("transformer.") for shard in read_shards(folder) for tensor in shard.tensors)
    before = losses(live(folder))
    assert evaluate_on_disk(FiledNetwork(folder), rows()).loss == pytest.approx(sum(before) / 140, rel=1e-5)
    prune_blocks_on_disk(FiledNetwork(folder), inputs(), Wanda(), lambda _share: None)
    assert losses(live(folder)) != before


def change(folder: Path, name: str, value: Tensor | None) -> None:
    """Replaces one tensor, or takes it away."""
    file = next(shard.path for shard in read_shards(folder) for tensor in shard.tensors if tensor.name == name)
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors if value is None else tensors | {name: value}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.1.mlp.up_proj.weight", None),
        ("lm_head.weight", None),
        ("model.norm.weight", torch.ones(31)),
        ("model.layers.0.self_attn.q_proj.weight", torch.ones(32, 32, dtype=torch.int8)),
    ],
)
def test_weights_that_are_missing_or_do_not_fit_are_refused(name: str, value: Tensor | None, save: Save) -> None:
    folder = save("llama", tied=False)
    change(folder, name, value)
    with pytest.raises(EngineError) as caught:
        FiledNetwork(folder)
    assert (caught.value.code, caught.value.blame) == ("MODEL_UNUSABLE", "user")


def test_a_broken_network_is_refused(save: Save) -> None:
    folder = save("llama")
    change(folder, "model.layers.1.mlp.up_proj.weight", torch.full((48, 32), torch.nan))
    with pytest.raises(EngineError) as caught:
        prune_blocks_on_disk(FiledNetwork(folder), inputs(), Wanda(), lambda _share: None)
    assert caught.value.code == "NOT_FINITE"


CUT = """
import sys
from pathlib import Path
import torch
from workers.engine.layerwise import Wanda
from workers.engine.layerwise.files import FiledNetwork, prune_blocks_on_disk
from workers.engine.layerwise.perplexity import evaluate_on_disk
torch.set_num_threads(1)
ids = torch.arange(64).view(2, 32)
for folder in sys.argv[1:]:
    files = FiledNetwork(Path(folder))
    prune_blocks_on_disk(files, [{"input_ids": ids}], Wanda(refit_steps=0), lambda share: None)
    evaluate_on_disk(files, [{"input_ids": ids, "labels": ids}])
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's peak of resident memory")
def test_memory_does_not_grow_with_the_number_of_blocks(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 2048, "num_attention_heads": 4, "vocab_size": 64}
    for blocks in (2, 10):
        network = LlamaForCausalLM(LlamaConfig(num_hidden_layers=blocks, **sizes))
        network.save_pretrained(tmp_path / str(blocks), max_shard_size="20MB")
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(tmp_path / "2"), str(tmp_path / "10")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shallow, deep = (int(line) / 1024 for line in done.stdout.split())
    # Eight blocks more of seven megabytes each.
    assert deep < shallow + 12
