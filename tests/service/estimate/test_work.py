"""More work takes longer, in the phase that does it."""

from typing import Any

import pytest

from service.estimate.anatomy import anatomy_of
from service.estimate.work import Phases, phases, reading
from service.resolve.order import Order
from tests.service.resolve.orders import TAYLOR, WEIGHTS, a_job_spec
from tests.service.samples import a_dataset, a_model

SIZES = {"layers": 6, "hidden_size": 384, "attention_heads": [12] * 6, "ffn_width": [1536] * 6, "vocabulary": 30522}


def an_order(rows: int = 1000, **changes: Any) -> Order:
    """A cut of neurons of MiniLM on rows of 100 bytes."""
    model = a_model(structure=SIZES, parameters=22_713_986)
    split = {"rows": rows, "size": 100 * rows, "sha256": "0" * 64}
    dataset = a_dataset(splits={"train": split, "validation": split, "test": split})
    return Order(a_job_spec(model, dataset, **{"cuts": [TAYLOR], **changes}), model, dataset, None)


def seconds(device: str = "cpu", **changes: Any) -> Phases:
    """By phase."""
    order = an_order(**changes)
    return phases(order, anatomy_of(order.model), device)


def test_training_grows_with_epochs_and_a_teacher() -> None:
    one, two = (seconds(finetuning={"epochs": epochs})["finetuning"] for epochs in (1, 2))
    taught = seconds(finetuning={"epochs": 1, "distillation": {}})["finetuning"]
    assert 1.7 < two / one < 2
    assert one < taught < two
    assert "finetuning" not in seconds()


def test_a_baseline_trains_too() -> None:
    both = seconds(baseline={"epochs": 1}, finetuning={"epochs": 1})["finetuning"]
    assert both > 2 * seconds(finetuning={"epochs": 1})["finetuning"]


def test_scoring_reads_no_more_rows_than_there_are() -> None:
    few = {**TAYLOR, "criterion": {"kind": "taylor", "samples": 512}}
    many = {**TAYLOR, "criterion": {"kind": "taylor", "samples": 1_000_000}}
    assert seconds(cuts=[few])["pruning"] < seconds(cuts=[many])["pruning"]
    assert seconds(rows=512, cuts=[many]) == seconds(rows=512, cuts=[few])


def test_exports_and_the_benchmark_take_time() -> None:
    plain = seconds(benchmark=None)
    assert seconds(benchmark=None, exports=["huggingface", "onnx"])["exporting"] > plain["exporting"] + 10
    assert seconds()["evaluating"] > plain["evaluating"] + 10
    shapes = {"batch_sizes": [1, 8, 64], "sequence_length": 128}
    assert seconds(benchmark=shapes)["evaluating"] > seconds()["evaluating"]


def test_a_gpu_works_faster() -> None:
    assert (
        seconds("cuda", finetuning={"epochs": 9})["finetuning"] < seconds(finetuning={"epochs": 9})["finetuning"] / 50
    )


def test_files_alone_need_no_network() -> None:
    model = a_model()
    alone = Order(a_job_spec(model, cuts=[WEIGHTS], benchmark=None), model, None, None)
    assert sum(phases(alone, None, "cpu").values()) < 5


def test_long_rows_are_cut_but_language_models_read_all() -> None:
    assert reading(an_order(max_length=8)).tokens("train") == 8 * 1000
    whole = reading(an_order()).tokens("train")
    assert whole == pytest.approx(1000 * 70 / 4)
    assert reading(an_order()).tokens("train", at_most=10) == pytest.approx(whole / 100)
    assert reading(an_order()).tokens("calibration") == 0
