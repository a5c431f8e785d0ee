"""One cut of a spec after another, by every criterion on every structure, with real rows of three labels."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from service.ids import new_id
from service.specs import CRITERIA_OF, TRAINING_CRITERIA, Cut, JobSpec
from tests.models import FILLER, tiny_network
from tests.workers.engine.tiny import logits, tiny_inputs
from tests.workers.engine.tiny_tasks import tokenizer_in, write
from workers.engine.families import family_of
from workers.engine.families.sizes import structure_of
from workers.engine.recovery import TRAINING_COST
from workers.engine.replica import replica
from workers.engine.reporter import Reporter
from workers.engine.slicing import matrix_of, projections_in, weight_of
from workers.engine.structures.weights import linears_of
from workers.engine.subject import Anatomy, Subject
from workers.engine.surgery import Theatre, apply_cut
from workers.engine.tasks import TASKS
from workers.engine.tasks.row_task import load_tokenizer
from workers.engine.work import Work

PAIRS = [(structure, kind) for structure, kinds in sorted(CRITERIA_OF.items()) for kind in sorted(kinds)]
SIGNS = ("good", "bad", "dull")
"""Words that give the three labels away."""
Stage = Callable[[Cut], tuple[Subject, Theatre]]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    found = []
    for number in range(count):
        words = chance.choices(FILLER, k=chance.randrange(3, 9))
        words.insert(chance.randrange(len(words)), SIGNS[number % 3])
        found.append({"text": " ".join(words), "label": number % 3})
    return found


def cut_of(structure: str, kind: str | None = None, **more: Any) -> Cut:
    order: dict[str, Any] = {"structure": structure} | more
    if kind is not None:
        samples = {} if kind in TRAINING_CRITERIA | {"magnitude", "random"} else {"samples": 48}
        order["criterion"] = {"kind": kind} | samples | more.get("criterion", {})
    return TypeAdapter(Cut).validate_python(order)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A fresh network of three labels with its rows, and what operates on it, for a job of one cut."""
    model = tokenizer_in(tmp_path / "in" / "model")
    dataset = write(tmp_path / "in" / "dataset", train=rows(48, 1), validation=rows(12, 2), test=rows(12, 3))

    def set_up(cut: Cut) -> tuple[Subject, Theatre]:
        order = {
            "name": "tiny",
            "model_id": new_id("mdl"),
            "task": "text-classification",
            "pruning": {"cuts": [cut.model_dump(exclude_none=True)]},
            "finetuning": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 16},
            "max_length": 16,
        }
        work = Work(tmp_path, JobSpec.model_validate(order), torch.device("cpu"), bfloat16=False)
        work.scratch.mkdir(exist_ok=True)
        network = tiny_network("bert", "BertForSequenceClassification", num_labels=3)
        network.save_pretrained(model)
        network.set_attn_implementation("eager")
        task = TASKS["text-classification"](dataset, model, network, work.settings(network))
        torch.manual_seed(0)
        subject = Subject(network, replica(network), task, model, Anatomy.of(network))
        return subject, Theatre(work, Reporter(io.StringIO()), torch.Generator().manual_seed(3))

    return set_up


def answers(network: PreTrainedModel) -> torch.Tensor:
    return logits(network.eval(), tiny_inputs(network))


def weights_of(network: PreTrainedModel) -> torch.Tensor:
    """All weights of the layers, in one row."""
    return torch.cat([matrix_of(linear).detach().flatten() for linear in linears_of(network)])


@pytest.mark.parametrize(("structure", "kind"), PAIRS)
def test_every_pair_keeps_its_ratio_repeats_under_a_seed_and_leaves_a_network(
    structure: str, kind: str, stage: Stage
) -> None:
    cut = cut_of(structure, kind, ratio=0.5)
    states = []
    for _ in range(2):
        subject, theatre = stage(cut)
        done = apply_cut(subject, cut, cut.share, theatre)
        assert (done["structure"], done["criterion"]) == (structure, kind)
        assert done["removed"] * 2 == done["of"] > 0
        found = answers(subject.network)
        assert found.shape == (3, 3) and bool(found.isfinite().all())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in subject.network.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.network.modules())
        states.append(subject.network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    if structure == "weights":
        assert int((weights_of(subject.network) == 0).sum()) == done["removed"]
    else:
        assert structure_of(subject.network) != structure_of(subject.teacher)


@pytest.mark.parametrize("kind", sorted(CRITERIA_OF["weights"]))
@pytest.mark.parametrize(("pattern", "kept", "width"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_of_so_many_neighbours_half_are_left(pattern: str, kept: int, width: int, kind: str, stage: Stage) -> None:
    cut = cut_of("weights", kind, pattern=pattern)
    subject, theatre = stage(cut)
    apply_cut(subject, cut, cut.share, theatre)
    counts = (weights_of(subject.network).view(-1, width) != 0).sum(1)
    assert bool((counts == kept).all())


@pytest.mark.parametrize("kind", ["magnitude", "activation", "second_order"])
def test_blocks_go_as_a_whole(kind: str, stage: Stage) -> None:
    cut = cut_of("weights", kind, pattern="block", block_size=4, ratio=0.5)
    subject, theatre = stage(cut)
    done = apply_cut(subject, cut, cut.share, theatre)
    assert done["removed"] * 2 == done["of"]
    for linear in linears_of(subject.network):
        zeros = (matrix_of(linear) == 0).float().unfold(0, 4, 4).unfold(1, 4, 4).mean((2, 3))
        assert bool(((zeros == 0) | (zeros == 1)).all())


@pytest.mark.parametrize("structure", ["attention_heads", "ffn_neurons", "weights"])
def test_a_threshold_cuts_what_training_made_small_and_no_more(structure: str, stage: Stage) -> None:
    removed = []
    for threshold in (0.0, 0.15, 100.0):
        cut = cut_of(structure, "regularization", criterion={"threshold": threshold, "strength": 1e-3})
        subject, theatre = stage(cut)
        done = apply_cut(subject, cut, cut.share, theatre)
        removed.append(done["removed"])
        assert bool(answers(subject.network).isfinite().all())
    assert removed[0] == 0 and removed == sorted(removed)
    groups = 2
    assert removed[2] == (done["of"] if structure == "weights" else done["of"] - groups)


def test_a_strong_penalty_makes_units_smaller(stage: Stage) -> None:
    sizes = []
    for strength in (1e-9, 10.0):
        cut = cut_of("ffn_neurons", "regularization", ratio=0.5, criterion={"strength": strength, "penalty": "l2"})
        subject, theatre = stage(cut)
        apply_cut(subject, cut, cut.share, theatre)
        whole = subject.teacher.state_dict()["bert.encoder.layer.0.attention.self.query.weight"].norm()
        sizes.append(float(subject.network.state_dict()["bert.encoder.layer.0.output.dense.weight"].norm() / whole))
    assert sizes[1] < sizes[0]


def test_a_repaired_network_is_nearer_to_what_it_was(stage: Stage) -> None:
    errors = []
    for repair in (False, True):
        cut = cut_of("ffn_neurons", "random", ratio=0.5, repair=repair)
        subject, theatre = stage(cut)
        apply_cut(subject, cut, cut.share, theatre)
        assert subject.task is not None
        (batch, *_) = subject.task.sample(48, 48)
        with torch.no_grad():
            now, then = (subject.task.logits(side, batch) for side in (subject.network, subject.teacher))
        errors.append(float((now - then).square().mean()))
    assert errors[1] < errors[0] / 2


def test_the_vocabulary_keeps_what_the_rows_use_and_every_answer(stage: Stage) -> None:
    cut = cut_of("vocabulary")
    subject, theatre = stage(cut)
    old = subject.teacher
    assert subject.task is not None
    before = subject.task.evaluate(old, "test")
    done = apply_cut(subject, cut, cut.share, theatre)
    after = subject.task.evaluate(subject.network, "test")
    assert after.metrics() == before.metrics() and after.loss == pytest.approx(before.loss, abs=1e-6)
    assert 0 < done["removed"] < done["of"]
    assert len(weight_of(subject.network.get_input_embeddings())) == done["of"] - done["removed"]
    assert subject.teacher.config.vocab_size == subject.network.config.vocab_size == done["of"] - done["removed"]
    assert old.config.vocab_size == done["of"], "the network that is measured as before stays whole"
    assert subject.source != theatre.work.model


def test_tokens_that_the_network_has_no_row_for_do_not_count(stage: Stage) -> None:
    cut = cut_of("vocabulary")
    subject, theatre = stage(cut)
    tokenizer = load_tokenizer(subject.source)
    rows = len(tokenizer)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(rows)])
    tokenizer.save_pretrained(subject.source)
    network = tiny_network("bert", "BertForSequenceClassification", num_labels=3, vocab_size=rows)
    subject.network, subject.teacher = network, replica(network)
    done = apply_cut(subject, cut, cut.share, theatre)
    assert 0 < done["removed"] < done["of"] == rows
    assert len(weight_of(network.get_input_embeddings())) == rows - done["removed"]


def test_a_cut_is_told_of(stage: Stage) -> None:
    cut = cut_of("attention_heads", "taylor", ratio=0.5)
    subject, theatre = stage(cut)
    lines = io.StringIO()
    apply_cut(subject, cut, cut.share, Theatre(theatre.work, Reporter(lines), theatre.generator))
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["phase"] for line in told if line["type"] == "phase"] == ["analyzing", "pruning"]
    assert any("Cut 4 of 8 attention_heads by taylor." in str(line) for line in told)


@pytest.mark.parametrize("kind", ["activation", "second_order"])
def test_progress_moves_while_blocks_are_solved(kind: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cut_of("weights", kind, ratio=0.5)
    subject, theatre = stage(cut)
    told: list[int] = []
    monkeypatch.setattr(theatre.reporter, "advance", told.append)
    apply_cut(subject, cut, cut.share, theatre)
    assert subject.task is not None
    assert sum(told) == TRAINING_COST * subject.task.sample_size(48)
    assert len(told) == 2 * 4 and max(told) < sum(told) / 2


def test_scope_global_spreads_solved_weights_over_blocks(stage: Stage) -> None:
    shares = {}
    for scope in ("uniform", "global"):
        cut = cut_of("weights", "activation", ratio=0.5, scope=scope)
        subject, theatre = stage(cut)
        done = apply_cut(subject, cut, cut.share, theatre)
        assert done["removed"] / done["of"] == pytest.approx(0.5, abs=0.001)
        layers = family_of(subject.network).layers(subject.network)
        weights = [torch.cat([matrix_of(p).flatten() for p in projections_in(layer.module)]) for layer in layers]
        shares[scope] = [float((found == 0).double().mean()) for found in weights]
    assert shares["uniform"] == [0.5, 0.5]
    assert abs(shares["global"][0] - shares["global"][1]) == pytest.approx(0.16, abs=0.01)
