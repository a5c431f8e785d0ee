"""Translation by an encoder-decoder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from transformers import PreTrainedModel

from service.specs import QUALITY_METRICS
from workers.engine.evaluation import Evaluation, Summed, Unmeasured
from workers.engine.tasks.encoded import Column
from workers.engine.tasks.row_task import IGNORED, Mean, Numbers, Row, RowTask, chunks
from workers.engine.tasks.task import Batch, Settings

TRANSLATED_TOGETHER = 32


class Translation(RowTask):
    """Rows `{"source", "target"}`; trained on the references' tokens, judged by what a beam search finds."""

    name = "translation"
    form = "source and target"
    auto = "AutoModelForSeq2SeqLM"

    def __init__(self, folder: Path, tokenizer: Path, network: PreTrainedModel, settings: Settings) -> None:
        self._references: list[str] = []
        start = getattr(network.config, "decoder_start_token_id", None)
        super().__init__(folder, tokenizer, network, settings)
        self._start = self.padding if start is None else int(start)

    @classmethod
    def fits(cls, row: Row) -> bool:
        """Two texts."""
        return isinstance(row["source"], str) and isinstance(row["target"], str)

    @classmethod
    def vocabularies(cls, config: Any) -> dict[str, int]:
        """Both sides are embedded."""
        return super().vocabularies(config) | {"labels": int(getattr(config, "decoder_vocab_size", config.vocab_size))}

    def columns(self) -> dict[str, Column]:
        """Tokens of both sides, and the number of the reference."""
        source = {"input_ids": Column(self.padding, mask="attention_mask")}
        return source | {"labels": Column(IGNORED), "reference": Column()}

    def encode(self, rows: Iterator[Row]) -> Iterator[Numbers]:
        """One for one."""
        for chunk in chunks(rows):
            sources = self.tokenize([row["source"] for row in chunk])["input_ids"]
            targets = self.tokenize([row["target"] for row in chunk], target=True)["input_ids"]
            for row, ids, labels in zip(chunk, sources, targets, strict=True):
                yield {"input_ids": ids, "labels": labels, "reference": [len(self._references)]}
                self._references.append(row["target"])

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The decoder reads what it should have said one step before."""
        before = torch.roll(batch["labels"], 1, 1)
        before[:, 0] = self._start
        return batch | {"decoder_input_ids": before.masked_fill(before == IGNORED, self.padding)}

    def validate(self, network: PreTrainedModel) -> Evaluation:
        """The loss alone: a beam search takes many times longer."""
        loss = Mean()
        for batch, logits in self.passes(network, "validation", TRANSLATED_TOGETHER):
            loss.add(self.loss_of(logits, batch), len(logits))
        return Unmeasured(loss.value, self.rows("validation"))

    def evaluate(self, network: PreTrainedModel, split: str) -> Evaluation:
        """`bleu` (Papineni et al., 2002) and `chrf` (Popović, 2015), from 0 to 100, as sacreBLEU has them."""
        loss, rows, longest = Mean(), [], self._longest(network, split)
        for batch, logits in self.passes(network, split, TRANSLATED_TOGETHER):
            loss.add(self.loss_of(logits, batch), len(logits))
            found = self.translate(network, batch, longest)
            wanted = [self._references[number] for number in batch["reference"].tolist()]
            rows.append(sentence_statistics(found, wanted))
        return Summed(loss.value, QUALITY_METRICS[self.name], np.concatenate(rows), bleu_and_chrf)

    def _longest(self, network: PreTrainedModel, split: str) -> int:
        """Tokens that a translation may have: a broken network that never ends must not take forever."""
        longest = self._split(split).longest("labels") * 3 // 2 + 1
        return min(longest, getattr(network.config, "max_position_embeddings", longest))

    def translate(self, network: PreTrainedModel, batch: Batch, longest: int) -> list[str]:
        """What a beam search of `settings.beams` finds, up to `longest` tokens."""
        inputs = {name: batch[name].to(network.device) for name in ("input_ids", "attention_mask")}
        found = network.generate(  # type: ignore[operator] # torch types attributes as tensors
            **inputs, num_beams=self.settings.beams, do_sample=False, max_length=longest, max_new_tokens=None
        )
        # A network may have more embeddings than there are tokens, and a broken one choose such.
        found = found.masked_fill(found >= len(self.tokenizer), self.padding)
        texts: list[str] = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return texts


_BLEU, _CHRF = BLEU(), CHRF()


def sentence_statistics(found: list[str], wanted: list[str]) -> NDArray[np.float64]:
    """Counts of n-grams and lengths of every sentence, first BLEU's, then chrF's; their sums are the corpus'."""
    parts = [metric._extract_corpus_statistics(found, [wanted]) for metric in (_BLEU, _CHRF)]
    return np.hstack([np.array(part, dtype=np.float64) for part in parts])


def bleu_and_chrf(sums: NDArray[np.float64]) -> tuple[float, float]:
    """Scores of a corpus, from 0 to 100, given its sums of `sentence_statistics`."""
    split = 2 + 2 * _BLEU.max_ngram_order
    parts = sums[:split].astype(int).tolist(), sums[split:].astype(int).tolist()
    bleu, chrf = (metric._compute_score_from_stats(part) for metric, part in zip((_BLEU, _CHRF), parts, strict=True))
    return float(bleu.score), float(chrf.score)
