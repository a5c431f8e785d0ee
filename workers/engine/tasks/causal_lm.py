"""Causal language modelling: the next token of running text."""

from collections.abc import Iterator

import torch

from workers.engine.tasks.encoded import Column
from workers.engine.tasks.language_model import LanguageModel
from workers.engine.tasks.row_task import IGNORED, Numbers, Row, chunks
from workers.engine.tasks.task import Batch


class CausalLM(LanguageModel):
    """Documents end to end, the tokenizer's end of text between them, cut into blocks of `max_length`."""

    name = "causal-lm"
    auto = "AutoModelForCausalLM"

    def columns(self) -> dict[str, Column]:
        """Blocks of tokens."""
        return {"input_ids": Column(self.padding, mask="attention_mask")}

    def encode(self, rows: Iterator[Row]) -> Iterator[Numbers]:
        """Blocks; the last one may be shorter, but never a single token, which predicts nothing."""
        end, size = self.tokenizer.eos_token_id, self.settings.max_length
        pending: list[int] = []
        for chunk in chunks(rows):
            texts = [row["text"] for row in chunk]
            for ids in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                pending += ids if end is None else [*ids, end]
                whole = len(pending) - len(pending) % size
                yield from ({"input_ids": pending[start : start + size]} for start in range(0, whole, size))
                del pending[:whole]
        if len(pending) > 1:
            yield {"input_ids": pending}

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The label of a token is the one that follows, so that the last is needed as a label only."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
        return {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "labels": labels}
