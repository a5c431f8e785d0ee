"""Contract of every criterion, over the registry: ratio, determinism, and better than chance where it must be."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

import workers
from service.ids import new_id
from service.specs import CRITERIA_OF, Cut, JobSpec
from tests.workers.engine.tiny import tiny_network
from workers.engine.criteria import CRITERIA
from workers.engine.criteria.criterion import weight_times_gradient
from workers.engine.evaluation import Unmeasured
from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.layerwise import METHODS
from workers.engine.reporter import Reporter
from workers.engine.slicing import weight_of
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Gate, gated
from workers.engine.structures.weights import linears_of
from workers.engine.subject import Anatomy, Subject
from workers.engine.surgery import Theatre, apply_cut, score
from workers.engine.work import Work

PAIRS = [
    (kind, structure)
    for structure, kinds in sorted(CRITERIA_OF.items())
    for kind in sorted(kinds)
    if not (structure == "weights" and kind in METHODS)
]
"""Criteria that score; those that solve single weights block by block are told apart below."""


class Rows:
    """A task of random rows, as far as scoring needs one."""

    def sample_size(self, rows: int) -> int:
        return min(rows, 24)

    def sample(self, rows: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        chance = torch.Generator().manual_seed(5)
        for _ in range(3):
            ids = torch.randint(2, 120, (8, 7), generator=chance)
            mask = torch.ones_like(ids)
            mask[::2, 4:] = 0
            yield {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (8,), generator=chance)}

    def size(self, batch: dict[str, Tensor]) -> int:
        return len(batch["labels"])

    def loss(self, network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return functional.cross_entropy(network(**inputs).logits, batch["labels"])

    def rows(self, split: str) -> int:
        return 24

    def batches(self, split: str, batch_size: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        return self.sample(24, batch_size)

    def validate(self, network: PreTrainedModel) -> Unmeasured:
        return Unmeasured(1.0, 24)


class Pulling(Rows):
    """A task that is solved best where every second neuron or head is zero."""

    def __init__(self, structure: str) -> None:
        self.structure = structure

    def loss(self, network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        groups = STRUCTURES[self.structure].groups(network)
        return torch.stack([group.sums(torch.square)[1::2].sum() for group in groups]).sum()


class Silent:
    """Where nobody reads the report lines."""

    def write(self, _text: str) -> None: ...

    def flush(self) -> None: ...


def cut_of(kind: str, structure: str, ratio: float | None = 0.5, **more: Any) -> Cut:
    order = {"structure": structure, "ratio": ratio, "criterion": {"kind": kind}} | more
    return TypeAdapter(Cut).validate_python(order)


def subject_of(network: PreTrainedModel, anatomy: Anatomy | None = None, task: Any = None) -> Subject:
    rows: Any = task or Rows()
    return Subject(network, network, rows, Path(), anatomy or Anatomy.of(network))


@cache
def upload() -> "TemporaryDirectory[str]":
    """A job's folder with weights in float32, which says what results are saved in."""
    folder = TemporaryDirectory()
    (Path(folder.name) / "in" / "model").mkdir(parents=True)
    save_file({"weight": torch.zeros(1)}, Path(folder.name) / "in" / "model" / "model.safetensors")
    return folder


def theatre() -> Theatre:
    order = {
        "name": "tiny",
        "model_id": new_id("mdl"),
        "task": "text-classification",
        "pruning": {"cuts": [cut_of("random", "weights")]},
        "finetuning": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 8},
    }
    work = Work(Path(upload().name), JobSpec.model_validate(order), torch.device("cpu"), bfloat16=False)
    torch.manual_seed(work.spec.seed)
    return Theatre(work, Reporter(Silent()), torch.Generator().manual_seed(3))  # type: ignore[arg-type]


def apply(network: PreTrainedModel, cut: Cut, anatomy: Anatomy | None = None, share: float | None = None) -> Any:
    return apply_cut(subject_of(network, anatomy), cut, share or cut.share, theatre())


def scores_of(network: PreTrainedModel, kind: str, structure: str, task: Any = None) -> list[Tensor]:
    cut = cut_of(kind, structure)
    criterion = CRITERIA[kind](cut.criterion, STRUCTURES[structure], torch.Generator().manual_seed(3))
    return score(subject_of(network, task=task), criterion, STRUCTURES[structure].groups(network), theatre())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("kind", "structure"), PAIRS)
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_ratio_is_kept_and_the_seed_decides(kind: str, structure: str, scope: str) -> None:
    twins = [tiny_network("distilbert"), tiny_network("distilbert")]
    for network in twins:
        done = apply(network, cut_of(kind, structure, scope=scope))
        assert done["removed"] * 2 == done["of"]
        assert all(bool(parameter.isfinite().all()) and parameter.grad is None for parameter in network.parameters())
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    states = [network.state_dict() for network in twins]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(("kind", "structure"), [pair for pair in PAIRS if pair[0] not in ("random", "movement")])
def test_useless_units_are_found_and_chance_does_not_find_them(kind: str, structure: str) -> None:
    network = tiny_network("bert")
    useless = make_useless(network, structure)
    assert found_share(scores_of(network, kind, structure), useless) >= (0.95 if structure == "weights" else 1.0)
    assert found_share(scores_of(network, "random", structure), useless) < 0.9


def test_movement_of_single_weights_stays_in_one_unit() -> None:
    """Ranked over all matrices, a weight must not gain by a neighbour that moved far from zero."""
    network, rows, structure = tiny_network("bert"), Rows(), STRUCTURES["weights"]
    criterion = CRITERIA["movement"](cut_of("movement", "weights").criterion, structure, torch.Generator())
    criterion.attach(network, structure.groups(network))
    rows.loss(network, next(rows.sample(8, 8))).backward()
    criterion.advance(1.0)
    moved = torch.cat([-weight_times_gradient(weight_of(linear)).flatten() for linear in linears_of(network)])
    scores = torch.cat(criterion.scores())
    assert float(scores.min()) == 0.0
    assert torch.allclose(scores, moved - moved.min(), atol=1e-6)


@pytest.mark.parametrize("structure", ["attention_heads", "ffn_neurons"])
def test_what_training_pulls_to_zero_moves_and_chance_does_not_find_it(structure: str) -> None:
    network = tiny_network("bert")
    pulled = [torch.arange(group.units) % 2 == 1 for group in STRUCTURES[structure].groups(network)]
    assert found_share(scores_of(network, "movement", structure, Pulling(structure)), pulled) == 1.0
    assert found_share(scores_of(network, "random", structure), pulled) < 0.9


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_solvers_of_single_weights_cut_what_reads_nothing(kind: str) -> None:
    solved, chance = tiny_network("bert"), tiny_network("bert")
    useless = make_useless(solved, "ffn_neurons")
    make_useless(chance, "ffn_neurons")
    apply(solved, cut_of(kind, "weights"))
    apply(chance, cut_of("random", "weights"))
    shares = [zero_share(network, useless) for network in (solved, chance)]
    assert shares[0] > 0.99
    assert shares[1] < 0.6


def zero_share(network: PreTrainedModel, useless: list[Tensor]) -> float:
    """How many of the last projections' weights that read a useless neuron are zero."""
    layers = family_of(network).layers(network)
    columns = [weight_of(layer.ffn_out)[:, mask] for layer, mask in zip(layers, useless, strict=True)]
    return float((torch.cat(columns, dim=1) == 0).float().mean())


def found_share(scores: list[Tensor], useless: list[Tensor]) -> float:
    """How many of the lowest scores, as many as there are useless units, are those of useless units."""
    found = total = 0
    for values, mask in zip(scores, useless, strict=True):
        count = int(mask.sum())
        lowest = values.argsort()[:count]
        found, total = found + int(mask[lowest].sum()), total + count
    return found / total


def make_useless(network: PreTrainedModel, structure: str) -> list[Tensor]:
    """Shrinks every second unit to almost nothing, and says which; of single weights, those of every second neuron."""
    groups = STRUCTURES["ffn_neurons" if structure == "weights" else structure].groups(network)
    masks = [torch.arange(group.units) % 2 == 1 for group in groups]
    with torch.no_grad():
        if structure == "layers":
            # A post-norm layer that adds nothing: its output is its input, normalised again.
            for name, small in family_of(network).sides(network)[0].modules[1].named_parameters():
                small.mul_(1.0 if "LayerNorm.weight" in name else 1e-3)
            return masks
        for group, mask in zip(groups, masks, strict=True):
            for part in group.parts:
                parameter: Tensor = part.parameter
                if part.unit is not None:
                    parameter.mul_(1e-3 if mask[part.unit] else 1.0)
                    continue
                factor = torch.where(mask, 1e-3, 1.0).repeat_interleave(parameter.shape[part.dim] // group.units)
                parameter.mul_(factor if part.dim == parameter.dim() - 1 else factor[:, None])
    if structure != "weights":
        return masks
    found = []
    layers = family_of(network).layers(network)
    for linear in linears_of(network):
        mask = torch.zeros_like(weight_of(linear), dtype=torch.bool)
        for layer, neurons in zip(layers, masks, strict=True):
            mask |= neurons[:, None] if linear is layer.ffn_in[0] else neurons if linear is layer.ffn_out else mask
        found.append(mask.flatten())
    return found


def test_taylor_predicts_the_change_of_the_loss_for_a_small_step() -> None:
    network, structure = tiny_network("bert"), STRUCTURES["ffn_neurons"]
    task: Any = Rows()
    (batch, *_) = task.sample(8, 8)
    row = {name: value[:1] for name, value in batch.items()}
    gates = [Gate(torch.ones(48), learn=True) for _ in range(2)]
    with gated(network, structure, gates):
        task.loss(network, row).backward()
    change = torch.zeros(48)
    change[7] = -1e-2
    closing = [Gate(torch.ones(48) + change, learn=False), Gate(torch.ones(48), learn=False)]
    with torch.no_grad(), gated(network, structure, closing):
        moved = task.loss(network, row)
    with torch.no_grad():
        predicted = gates[0].gradients[0, 7] * -1e-2
        assert moved - task.loss(network, row) == pytest.approx(float(predicted), rel=0.05, abs=1e-6)


@pytest.mark.parametrize("kind", ["gradient", "taylor"])
def test_scoring_leaves_frozen_weights_frozen(kind: str) -> None:
    network = tiny_network("bert")
    positions = network.get_parameter("bert.embeddings.position_embeddings.weight")
    positions.requires_grad_(False)
    scores_of(network, kind, "ffn_neurons")
    assert [parameter for parameter in network.parameters() if not parameter.requires_grad] == [positions]


def test_padding_does_not_count_in_similarity() -> None:
    network = tiny_network("bert")
    plain = scores_of(network, "similarity", "layers")[0]

    class Padded(Rows):
        def sample(self, rows: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
            for batch in super().sample(rows, batch_size):
                wide = {name: functional.pad(value, (0, 6)) for name, value in batch.items() if name != "labels"}
                yield wide | {"labels": batch["labels"]}

    padded = scores_of(network, "similarity", "layers", Padded())[0]
    assert torch.allclose(plain, padded, atol=1e-4)


@pytest.mark.parametrize("kind", ["magnitude", "gradient", "random"])
def test_layers_of_unequal_widths_can_be_scored(kind: str) -> None:
    network = tiny_network("bert", uneven=True)
    assert apply(network, cut_of(kind, "layers"))["removed"] == 1


def test_rounds_add_up_to_the_ratio_of_the_original_units() -> None:
    network = tiny_network("roberta")
    anatomy = Anatomy.of(network)
    cuts = [cut_of("taylor", "ffn_neurons", 0.75), cut_of("taylor", "attention_heads", 0.5, scope="global")]
    for share in (0.3, 0.7, 1.0):
        for cut in cuts:
            apply(network, cut, anatomy, cut.share * share)
    apply(network, cut_of("similarity", "layers"), anatomy)
    layer = family_of(network).layers(network)[0]
    assert len(weight_of(layer.ffn_in[0])) == 12
    assert len(anatomy.kept_layers["encoder"]) == 1


def test_zeros_stay_zero_and_count() -> None:
    network = tiny_network("bert")
    anatomy, cut = Anatomy.of(network), cut_of("random", "weights", 0.5, scope="global")
    weight = weight_of(family_of(network).layers(network)[0].ffn_in[0])
    apply(network, cut, anatomy, 0.25)
    gone = weight == 0
    done = apply(network, cut, anatomy, 0.5)
    assert bool((weight == 0)[gone].all())
    assert done["removed"] * 2 == done["of"]


def test_a_broken_network_is_refused() -> None:
    network = tiny_network("bert")
    with torch.no_grad():
        weight_of(family_of(network).layers(network)[0].ffn_in[0])[0, 0] = float("nan")
    with pytest.raises(EngineError) as caught:
        apply(network, cut_of("taylor", "ffn_neurons"))
    assert caught.value.code == "NOT_FINITE"


TOY_SPEC = """
class Alphabetical(Part):
    kind: Literal["alphabetical"]


Criterion: TypeAlias = Annotated[
    Alphabetical | """
TOY_FILE = """
import torch
from torch import Tensor

from workers.engine.criteria.criterion import Criterion


class Alphabetical(Criterion):
    def scores(self) -> list[Tensor]:
        return [torch.arange(group.units, dtype=torch.float) for group in self.groups]
"""
TOY_RUN = """
import sys
import service, workers
from service.specs import CRITERIA_OF
from tests.workers.engine.test_criteria import apply, cut_of, tiny_network, family_of, weight_of

assert workers.__file__.startswith(sys.argv[1]) and service.__file__.startswith(sys.argv[1]), workers.__file__
network = tiny_network("bert")
last = weight_of(family_of(network).layers(network)[0].ffn_in[0])[24:].clone()
print(apply(network, cut_of("alphabetical", "ffn_neurons"))["removed"])
print(bool((weight_of(family_of(network).layers(network)[0].ffn_in[0]) == last).all()))
"""


def insert(file: Path, before: str, text: str) -> None:
    """Puts `text` in front of `before`, which is there once."""
    source = file.read_text()
    assert source.count(before) == 1
    file.write_text(source.replace(before, text + before))


def test_a_criterion_is_a_spec_class_a_file_and_a_line(tmp_path: Path) -> None:
    root = Path(workers.__file__).parents[1]
    for name in ("service", "workers", "tests"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    specs = tmp_path / "service" / "specs" / "criteria.py"
    union = "Criterion: TypeAlias = Annotated[\n    "
    specs.write_text(specs.read_text().replace(union, TOY_SPEC.lstrip(), 1))
    insert(specs, '"magnitude", "gradient", "taylor", "fisher", "random"}', '"alphabetical", ')
    criteria = tmp_path / "workers" / "engine" / "criteria"
    (criteria / "alphabetical.py").write_text(TOY_FILE)
    insert(
        criteria / "__init__.py",
        "from workers.engine.criteria.criterion import",
        "from workers.engine.criteria.alphabetical import Alphabetical\n",
    )
    insert(criteria / "__init__.py", '    "magnitude": Magnitude', '    "alphabetical": Alphabetical,\n')
    run = subprocess.run(
        [sys.executable, "-c", TOY_RUN, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["48", "True"], run.stderr
