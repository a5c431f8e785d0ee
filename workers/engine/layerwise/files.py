"""A causal language model that stays in its files: only the block at work is in memory, and rows of its tables."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.families.loading import load_skeleton
from workers.engine.layerwise import Method, Opened, cut_blocks
from workers.engine.layerwise.feed import Stream, stream_into
from workers.engine.slicing import projections_in, weight_of
from workers.engine.streaming import Report, count_zeros, shards
from workers.engine.streaming.shards import fill, read, read_shards

AUTO = "AutoModelForCausalLM"
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TABLE_ROWS = 4096
"""Rows of a table that are read at once."""


class Table:
    """A matrix that stays in its file, of which rows are read as float32."""

    def __init__(self, tensor: shards.Tensor) -> None:
        self._tensor = tensor
        self.rows, self.width = tensor.shape
        self._bytes = (tensor.end - tensor.start) // self.rows

    def look_up(self, rows: Sequence[int]) -> Tensor:
        """(rows, width), in the order asked for."""
        held = np.empty((len(rows), self._bytes), np.uint8)
        with self._tensor.path.open("rb") as file:
            for place, row in zip(held, rows, strict=True):
                fill(place, file, self._tensor.start + row * self._bytes)
        return torch.from_numpy(held).view(TYPES[self._tensor.dtype]).float()

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """All rows in order, some at a time, with the number of the first."""
        with self._tensor.path.open("rb") as file:
            for begin in range(0, self.rows, TABLE_ROWS):
                count = min(TABLE_ROWS, self.rows - begin)
                held = read(file, self._tensor.start + begin * self._bytes, count * self._bytes)
                yield begin, torch.from_numpy(held).view(TYPES[self._tensor.dtype]).view(count, self.width).float()


class LookedUp(nn.Module):
    """Stands for an embedding whose table stays in its file."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of (..., width)."""
        wanted, places = ids.unique(return_inverse=True)
        return self._table.look_up(wanted.tolist()).to(ids.device)[places]


class FiledNetwork:
    """A network without weights, and where they lie; it satisfies `layerwise.Blocks`.

    `network` runs but for its blocks and its head. Raises EngineError MODEL_UNUSABLE where weights are missing or do
    not fit the config.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", attention: str | None = None) -> None:
        """`attention` is that of a job's network by default, so that both give the same numbers; sdpa is smaller."""
        self.device = torch.device(device)
        self._files = {tensor.name: tensor for shard in read_shards(folder) for tensor in shard.tensors}
        self.network = load_skeleton(folder, AUTO)
        self.network.set_attn_implementation(attention or ("eager" if self.device.type == "cpu" else "sdpa"))
        self.network.config.use_cache = False
        self.blocks = family_of(self.network).sides(self.network)[0].modules
        self._stem = self._path(self.blocks) + "."
        self._table_names = [
            self._path(part) + ".weight"
            for part in (self.network.get_output_embeddings(), self.network.get_input_embeddings())
        ]
        self._check()
        self.head, embedding = self._tables()
        self.network.set_input_embeddings(LookedUp(embedding))
        self._fill_the_rest()

    def __len__(self) -> int:
        return len(self.blocks)

    @contextmanager
    def open(self, number: int) -> Iterator[Opened]:
        """A block with its weights, in float32."""
        block, prefix = copy.deepcopy(self.blocks[number]), f"{self._stem}{number}."
        block.load_state_dict({name: self._read(prefix + name) for name in block.state_dict()}, assign=True)
        try:
            yield block, {linear: TYPES[self._tensor(name).dtype] for name, linear in self._weights(number, block)}
        finally:
            # Whoever still holds the block holds no weights.
            block.to(device="meta")

    def save(self, number: int, block: nn.Module) -> None:
        """Writes the weights of the block's projections to their files, where they were."""
        for name, linear in self._weights(number, block):
            tensor = self._tensor(name)
            values = weight_of(linear).detach().to("cpu", TYPES[tensor.dtype]).contiguous()
            with tensor.path.open("r+b") as file:
                file.seek(tensor.start)
                file.write(values.flatten().view(torch.uint8).numpy().data)

    def stream(self, batches: Sequence[dict[str, Tensor]]) -> Stream:
        """What enters the first block, and what the blocks are called with."""
        inputs = [{name: value.to(self.device) for name, value in batch.items()} for batch in batches]
        skeleton = self.blocks[0]
        with torch.no_grad(), self.open(0) as (block, _):
            self.blocks[0] = block
            try:
                return stream_into(self.network.base_model, self.blocks, inputs)
            finally:
                self.blocks[0] = skeleton

    def after_blocks(self, state: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """What the network makes of what the last block gives for a batch, up to its head."""
        for block in self.blocks:
            block.forward = lambda *_args, **_kwargs: state
        try:
            inputs = {name: value.to(self.device) for name, value in batch.items()}
            found: Tensor = self.network.base_model(**inputs, use_cache=False).last_hidden_state
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)
        return found

    def report(self, seconds: float) -> Report:
        """What of the blocks' projections is zero now, by names in the files, after so many seconds' work."""
        names = [name for number, block in enumerate(self.blocks) for name, _ in self._weights(number, block)]
        tensors = [self._tensor(name) for name in names]
        zeros = {tensor.name: count_zeros([tensor]) for tensor in tensors}
        return Report(sum(tensor.size for tensor in tensors), sum(zeros.values()), zeros, seconds)

    def _path(self, part: nn.Module) -> str:
        names: Iterator[str] = (name for name, module in self.network.named_modules() if module is part)
        return next(names)

    def _weights(self, number: int, block: nn.Module) -> list[tuple[str, nn.Module]]:
        inside, prefix = set(projections_in(block)), f"{self._stem}{number}."
        return [(f"{prefix}{name}.weight", module) for name, module in block.named_modules() if module in inside]

    def _tensor(self, name: str) -> shards.Tensor:
        return self._files[self._name(name)]

    def _name(self, name: str) -> str:
        """How the files call a parameter: a network that was saved without a head has shorter names."""
        prefix: str = self.network.base_model_prefix
        return name if name in self._files else name.removeprefix(f"{prefix}.")

    def _read(self, name: str) -> Tensor:
        tensor = self._tensor(name)
        with tensor.path.open("rb") as file:
            held = read(file, tensor.start, tensor.end - tensor.start)
        return torch.from_numpy(held).view(TYPES[tensor.dtype]).view(tensor.shape).to(self.device, torch.float32)

    def _check(self) -> None:
        for name, parameter in self.network.state_dict().items():
            found = self._files.get(self._name(name))
            if found is None and not (name in self._table_names and self._tied):
                raise EngineError(
                    "MODEL_UNUSABLE", "the model lacks some of its weights; upload it whole", blame="user"
                )
            if found is not None and (found.shape != tuple(parameter.shape) or found.dtype not in TYPES):
                message = "the model's weights do not fit its config; upload it whole"
                raise EngineError("MODEL_UNUSABLE", message, blame="user")

    @property
    def _tied(self) -> bool:
        """Whether head and embedding may be one table, of which there has to be one at least."""
        tables = [name for name in self._table_names if self._name(name) in self._files]
        return bool(self.network.all_tied_weights_keys) and bool(tables)

    def _tables(self) -> tuple[Table, Table]:
        """Of the head and of the embedding: each its own, or the one that there is."""
        head, embedding = (self._files.get(self._name(name)) for name in self._table_names)
        return Table(head or embedding), Table(embedding or head)  # type: ignore[arg-type] # one was found

    def _fill_the_rest(self) -> None:
        """Loads what belongs to neither blocks nor tables, and moves what was computed."""
        skip = (self._stem, *self._table_names)
        rest = [name for name in self.network.state_dict() if not name.startswith(skip)]
        self.network.load_state_dict({name: self._read(name) for name in rest}, strict=False, assign=True)
        for module in self.network.modules():
            for name in module._non_persistent_buffers_set:
                module._buffers[name] = module._buffers[name].to(self.device)  # type: ignore[union-attr]


def prune_blocks_on_disk(
    files: FiledNetwork,
    batches: Sequence[dict[str, Tensor]],
    method: Method,
    progress: Callable[[float], None],
    *,
    bfloat16: bool = False,
) -> Report:
    """Does to the files of a causal language model what `prune_blocks` does to a network in memory, block by block.

    Every weight is written to where it was, in its own type; names, shapes and all other bytes stay. In memory are one
    block, the hidden states of all batches and what a statistic takes, whatever the number of blocks. Where it ends
    early, the files are worth nothing. Raises EngineError NOT_FINITE.
    """
    begun = time.monotonic()
    cut_blocks(files, files.stream(batches), method, progress, bfloat16=bfloat16)
    return files.report(time.monotonic() - begun)
