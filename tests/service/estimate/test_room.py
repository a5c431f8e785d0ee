"""Memory and disk grow with what a job does."""

from typing import Any

from service.estimate.anatomy import anatomy_of
from service.estimate.room import disk, memory
from service.resolve.order import Order
from tests.service.estimate.test_work import an_order
from tests.service.resolve.orders import WEIGHTS, a_job_spec
from tests.service.samples import a_model

P = 22_713_986


def needed(device: str = "cpu", **changes: Any) -> float:
    """Bytes of memory."""
    order = an_order(**changes)
    return memory(order, anatomy_of(order.model), device)


def stored(**changes: Any) -> float:
    """Bytes of disk."""
    order = an_order(**changes)
    return disk(order, anatomy_of(order.model))


def test_training_holds_gradients_moments_and_the_best_weights() -> None:
    with_adam = needed(finetuning={"epochs": 1})
    with_sgd = needed(finetuning={"epochs": 1, "optimizer": {"kind": "sgd"}})
    assert with_adam - with_sgd == 4 * P
    assert with_adam - needed() == 3 * 4 * P


def test_activations_grow_with_the_batch_and_the_length() -> None:
    batches = [needed(finetuning={"epochs": 1, "batch_size": size}) for size in (32, 64, 96)]
    assert batches[2] - batches[1] == batches[1] - batches[0] > 0
    short, long = (needed(finetuning={"epochs": 1}, max_length=length) for length in (32, 128))
    assert long > short


def test_a_gpu_holds_no_libraries_and_no_exports() -> None:
    assert needed() - needed("cuda") == 900e6
    assert needed("cuda", exports=["onnx"]) == needed("cuda")


def test_files_alone_take_little() -> None:
    model = a_model(parameters=10**10)
    alone = Order(a_job_spec(model, cuts=[WEIGHTS], benchmark=None), model, None, None)
    assert memory(alone, None, "cpu") < 1e9
    assert disk(alone, None) >= 4 * 10**10 + model.size


def test_every_export_takes_disk() -> None:
    plain = stored()
    assert stored(exports=["huggingface", "onnx"]) - plain > 4 * P
    assert stored(exports=["huggingface", "onnx"]) > stored(exports=["huggingface", "onnx_int8"]) > plain
