"""Directories that transformers itself writes are taken, and what is stored loads again with the same outputs."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from service.intake.limits import Limits
from service.intake.models import Checked, publish, read_model
from service.storage.local import LocalStorage
from service.tables import Model
from tests.models import tiny_model
from workers.engine.families import FAMILIES


def _tar(folder: Path) -> io.BytesIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(folder, arcname="my-model")
    target.seek(0)
    return target


def _read(folder: Path, scratch: Path) -> Checked:
    scratch.mkdir()
    return read_model(_tar(folder), scratch, Limits("model", 1 << 30, scratch, 0))


def _store(checked: Checked, root: Path) -> tuple[Model, Path]:
    row = publish(LocalStorage(root), checked, tenant="t", name="n", metadata={})
    return row, root / row.prefix


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("head", [True, False])
def test_what_transformers_writes_is_taken_and_loads_again(family: str, head: bool, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "given", family, head=head)
    row, stored = _store(_read(folder, tmp_path / "scratch"), tmp_path / "storage")
    kind = AutoModelForSequenceClassification if head else AutoModel
    before, after = (kind.from_pretrained(place).eval() for place in (folder, stored))
    tokens = torch.tensor([[2, 7, 8, 3]])
    assert torch.equal(before(tokens)[0], after(tokens)[0])
    assert (row.family, row.facts["has_head"], row.facts["has_tokenizer"]) == (family, head, True)
    assert row.task == ("text-classification" if head else None)
    assert row.parameters == sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    config = before.config
    assert row.structure["layers"] == config.num_hidden_layers
    assert row.structure["attention_heads"] == [config.num_attention_heads] * config.num_hidden_layers
    assert row.structure["vocabulary"] == config.vocab_size
    assert row.facts["labels"] == (list(config.id2label.values()) if head else None)


def test_the_tokenizer_loads_again(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "given")
    _, stored = _store(_read(folder, tmp_path / "scratch"), tmp_path / "storage")
    before, after = (AutoTokenizer.from_pretrained(place) for place in (folder, stored))
    assert type(before) is type(after)
    assert before("a good film")["input_ids"] == after("a good film")["input_ids"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_told(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "given")
    AutoModel.from_pretrained(folder).to(dtype).save_pretrained(tmp_path / "half")
    row, _ = _store(_read(tmp_path / "half", tmp_path / "scratch"), tmp_path / "storage")
    assert row.dtype == str(dtype).removeprefix("torch.")


def test_a_failing_storage_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = _read(tiny_model(tmp_path / "given"), tmp_path / "scratch")
    storage = LocalStorage(tmp_path / "storage")
    put = storage.put

    def breaks(key: str, source: Path) -> None:
        if key.endswith("vocab.txt"):
            raise OSError("the disk is gone")
        put(key, source)

    monkeypatch.setattr(storage, "put", breaks)
    with pytest.raises(OSError, match="gone"):
        publish(storage, checked, tenant="t", name="n", metadata={})
    assert list(storage.list("models")) == []


def test_a_classifier_without_its_pooler_counts_as_untrained(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "given")
    weights = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(left, folder / "model.safetensors", {"format": "pt"})
    assert not _read(folder, tmp_path / "scratch").has_head


def test_names_of_old_checkpoints_are_taken(tmp_path: Path) -> None:
    """Old BERT files call a norm's weight `gamma` and its bias `beta`; transformers still loads them."""
    folder = tiny_model(tmp_path / "given")
    before = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    weights = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    _, stored = _store(_read(folder, tmp_path / "scratch"), tmp_path / "storage")
    after = AutoModelForSequenceClassification.from_pretrained(stored).eval()
    tokens = torch.tensor([[2, 7, 8, 3]])
    assert torch.equal(before(tokens)[0], after(tokens)[0])
