"""Masked language modelling (Devlin et al., 2019): tokens that were hidden are guessed from both sides."""

from collections.abc import Iterator

import torch

from workers.engine.failures import EngineError
from workers.engine.tasks.encoded import Column
from workers.engine.tasks.language_model import LanguageModel
from workers.engine.tasks.row_task import IGNORED, Numbers, Row, chunks
from workers.engine.tasks.task import Batch

HIDDEN = 0.15
"""Share of the tokens that are to be guessed."""
MASKED, REPLACED = 0.8, 0.1
"""Shares of the hidden tokens that become the mask, or a token by chance; the rest stay as they are."""


class MaskedLM(LanguageModel):
    """Texts cut into blocks of `max_length`; other tokens are hidden every epoch, in evaluation always the same."""

    name = "masked-lm"
    auto = "AutoModelForMaskedLM"

    def columns(self) -> dict[str, Column]:
        """Blocks of tokens."""
        return {"input_ids": Column(self.padding, mask="attention_mask")}

    def encode(self, rows: Iterator[Row]) -> Iterator[Numbers]:
        """One or more blocks of every text that has a token; each with the tokenizer's frame around it."""
        if self.tokenizer.mask_token_id is None:
            message = "the model's tokenizer has no mask token, which masked-lm needs"
            raise EngineError("TOKENIZER_UNUSABLE", message, blame="user")
        for chunk in chunks(rows):
            found = self.tokenizer(
                [row["text"] for row in chunk],
                truncation=True,
                max_length=self.settings.max_length,
                return_overflowing_tokens=True,
            )
            specials = set(self.tokenizer.all_special_ids)
            yield from ({"input_ids": ids} for ids in found["input_ids"] if not specials.issuperset(ids))

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hides tokens, at least one in every row; labels are what they were."""
        ids = batch["input_ids"]
        chance, fate = (torch.rand(ids.shape, generator=generator) for _ in range(2))
        special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids)) | (batch["attention_mask"] == 0)
        chance = chance.masked_fill(special, 2.0)
        hidden = (chance < HIDDEN) | ((chance == chance.min(1, keepdim=True).values) & ~special)
        known = min(len(self.tokenizer), self.vocabulary["input_ids"])
        other = torch.randint(known, ids.shape, generator=generator)
        shown = torch.where(hidden & (fate < MASKED + REPLACED), other, ids)
        shown = shown.masked_fill(hidden & (fate < MASKED), self.tokenizer.mask_token_id)
        return batch | {"input_ids": shown, "labels": ids.masked_fill(~hidden, IGNORED)}
