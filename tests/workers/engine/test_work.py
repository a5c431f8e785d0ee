"""What a job works with: a decoder that classifies knows its padding, wherever it has to come from."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from service.ids import new_id
from service.specs import JobSpec
from tests.models import tiny_network
from tests.workers.engine.tiny_tasks import IDS, tokenizer_in, write
from workers.engine.failures import EngineError
from workers.engine.reporter import Reporter
from workers.engine.tasks.task import forward
from workers.engine.work import Work, load

DECODERS = {"gpt2": "GPT2", "llama": "Llama", "qwen3": "Qwen3"}
ROWS = [{"text": text, "label": 0} for text in ("good", "the film was very good", "a plot a plot")]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def work_on(folder: Path, family: str, *, data: bool = True, **config: Any) -> Work:
    """A job that classifies with a decoder whose config names no padding; `config` may name other tokens."""
    model = folder / "in" / "model"
    given: dict[str, Any] = {"pad_token_id": None, "eos_token_id": None, "num_labels": 2} | config
    tiny_network(family, f"{DECODERS[family]}ForSequenceClassification", **given).save_pretrained(model)
    if data:
        write(folder / "in" / "dataset", test=ROWS)
    cut = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "random"}}
    order = {"name": "n", "model_id": new_id("mdl"), "task": "text-classification", "pruning": {"cuts": [cut]}}
    return Work(folder, JobSpec.model_validate(order | {"max_length": 16}), torch.device("cpu"), bfloat16=False)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("tokens", [{}, {"pad_token": None, "eos_token": "[SEP]"}], ids=["pad", "eos"])
def test_rows_of_a_batch_are_classified_as_each_alone(family: str, tokens: dict[str, Any], tmp_path: Path) -> None:
    work = work_on(tmp_path, family)
    tokenizer_in(work.model, **tokens)
    network, task = load(work, Reporter(io.StringIO()))
    assert task is not None
    assert network.config.pad_token_id == IDS["[SEP]" if tokens else "[PAD]"]
    (together,) = task.batches("test", 3)
    assert len(together["input_ids"]) == 3 and not bool(together["attention_mask"].all())
    network.eval()
    with torch.no_grad():
        found = forward(network, together).logits
        for row, length in enumerate(together["attention_mask"].sum(1).tolist()):
            single = {name: values[row : row + 1, :length] for name, values in together.items() if values.dim() > 1}
            assert torch.allclose(forward(network, single).logits[0], found[row], atol=1e-5)


def test_without_a_tokenizer_padding_is_the_end_of_a_text_or_an_error(tmp_path: Path) -> None:
    network, _ = load(work_on(tmp_path / "end", "gpt2", data=False, eos_token_id=3), Reporter(io.StringIO()))
    assert network.config.pad_token_id == 3
    with pytest.raises(EngineError) as caught:
        load(work_on(tmp_path / "none", "gpt2", data=False), Reporter(io.StringIO()))
    assert (caught.value.code, caught.value.blame) == ("MODEL_UNUSABLE", "user")
