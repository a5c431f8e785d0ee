"""Sentence embedding (Reimers and Gurevych, 2019): texts become vectors whose cosine says how much alike they are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from service.specs import QUALITY_METRICS
from workers.engine.evaluation import Evaluation, Summed
from workers.engine.failures import EngineError
from workers.engine.tasks.encoded import Column
from workers.engine.tasks.row_task import Mean, Numbers, Row, RowTask, chunks
from workers.engine.tasks.task import Batch, Settings, forward

SHARPNESS = 20.0
"""Factor of cosines where the right partner is picked among those of the batch."""
BLUR = 0.1
"""How far off the mark, which has length 1, samples aim where the teacher is the only target."""


class SentenceEmbedding(RowTask):
    """Rows `{"text", "text_pair"?, "score"?}`, all of the same fields.

    With scores the cosine learns the score, from 0 to the data's highest or 1. Pairs without scores find their
    partner among those of the batch. A text alone stays where the teacher puts it.
    """

    name = "sentence-embedding"
    form = "text, and in every row or none text_pair, and with it in every row or none a number score"
    auto = "AutoModel"
    outputs = ("last_hidden_state",)
    joint = True

    def __init__(self, folder: Path, tokenizer: Path, network: PreTrainedModel, settings: Settings) -> None:
        first = next((row for file in sorted(folder.glob("*.jsonl")) for row in self.read(file)), {})
        self._paired, self._scored = "text_pair" in first, "score" in first
        self._first_token = pooling_of(tokenizer) == "cls"
        self._size = int(network.config.hidden_size)
        super().__init__(folder, tokenizer, network, settings)
        scores = [split.highest("score") for split in self._splits.values()] if self._scored else []
        self._scale = max(1.0, *scores, 1.0)

    @classmethod
    def fits(cls, row: Row) -> bool:
        """A score needs a pair."""
        texts = isinstance(row["text"], str) and isinstance(row.get("text_pair", ""), str)
        scored = isinstance(row.get("score", 0), int | float) and ("score" not in row or "text_pair" in row)
        return texts and scored

    @classmethod
    def vocabularies(cls, config: Any) -> dict[str, int]:
        """Both texts are embedded."""
        both = super().vocabularies(config)
        return both | {"pair_ids": both["input_ids"]}

    def columns(self) -> dict[str, Column]:
        """Tokens of each text, and the score."""
        pair = {"pair_ids": Column(self.padding, mask="pair_mask")} if self._paired else {}
        score = {"score": Column(kind="d")} if self._scored else {}
        return {"input_ids": Column(self.padding, mask="attention_mask")} | pair | score

    def encode(self, rows: Iterator[Row]) -> Iterator[Numbers]:
        """One for one."""
        for chunk in chunks(rows):
            if any(("text_pair" in row, "score" in row) != (self._paired, self._scored) for row in chunk):
                raise EngineError("DATA_UNUSABLE", f"rows of {self.name} need {self.form}", blame="user")
            texts = {"input_ids": "text"} | ({"pair_ids": "text_pair"} if self._paired else {})
            ids = {name: self.tokenize([row[key] for row in chunk])["input_ids"] for name, key in texts.items()}
            for index, row in enumerate(chunk):
                score = {"score": [row["score"]]} if self._scored else {}
                yield {name: found[index] for name, found in ids.items()} | score

    def collate(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Partners follow all the texts as rows of their own."""
        if not self._paired:
            return batch
        both = {"input_ids": ("pair_ids", self.padding), "attention_mask": ("pair_mask", 0)}
        joined = {name: stacked(batch[name], batch.pop(pair), fill) for name, (pair, fill) in both.items()}
        return batch | joined

    def size(self, batch: Batch) -> int:
        """A pair is one row."""
        return len(batch["input_ids"]) // (1 + self._paired)

    def sample(self, rows: int, batch_size: int) -> Iterator[Batch]:
        """As for every task; texts alone come with an error of aim.

        An unpruned network is its own teacher, where the distance is flat and no unit seems to matter. The squares of
        gradients towards blurred targets give the Gauss-Newton form of the Fisher information (Martens, 2020).
        """
        generator = self._seeded()
        for batch in super().sample(rows, batch_size):
            blur = torch.randn(len(batch["input_ids"]), self._size, generator=generator)
            yield batch if self._paired else batch | {"blur": BLUR * functional.normalize(blur)}

    def logits(self, network: PreTrainedModel, batch: Batch) -> Tensor:
        """Embeddings, (texts, hidden size): of all texts of the batch, then of all partners."""
        states: Tensor = forward(network, batch).last_hidden_state.float()
        if self._first_token:
            return states[:, 0]
        mask = batch["attention_mask"].to(states.device)[:, :, None]
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Of scores the mean squared error; of pairs cross-entropy (Henderson et al., 2017); of texts 1 - cosine."""
        if not self._paired:
            target = functional.normalize(self._target(logits, batch))
            aim = target + batch["blur"].to(target.device) if "blur" in batch else target
            return (1 - functional.cosine_similarity(logits, aim)).mean()
        if self._scored:
            scores = batch["score"].to(logits.device) / self._scale
            return functional.mse_loss(likeness_of_pairs(logits), scores)
        texts, partners = functional.normalize(logits).chunk(2)
        with torch.autocast(logits.device.type, enabled=False):  # bfloat16 cannot tell close cosines apart
            likeness = SHARPNESS * texts @ partners.T
        return functional.cross_entropy(likeness, torch.arange(len(texts), device=logits.device))

    def _target(self, logits: Tensor, batch: Batch) -> Tensor:
        """The teacher's embeddings; a network without a teacher is its own."""
        if "target" in batch:
            return batch["target"]
        if self.teacher is None:
            return logits.detach()
        with torch.no_grad():
            return self.logits(self.teacher, batch)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """`1 - cosine`, mean over texts; vectors have no temperature."""
        return (1 - functional.cosine_similarity(student, teacher)).mean()

    def evaluate(self, network: PreTrainedModel, split: str) -> Evaluation:
        """`spearman` where there are scores, and `agreement`: the mean cosine to the teacher's embeddings."""
        loss, agreement, likeness, scores = Mean(), [], [], []
        for batch, found in self.passes(network, split):
            target = self._target(found, batch)
            loss.add(self.loss_of(found, batch | {"target": target}), self.size(batch))
            cosines = functional.cosine_similarity(found, target)
            agreement.append(cosines.view(-1, self.size(batch)).mean(0).cpu().numpy())
            if self._scored:
                likeness.append(likeness_of_pairs(found).cpu().numpy())
                scores.append(batch["score"].numpy())
        agreed = np.concatenate(agreement).astype(np.float64)
        if self._scored:
            return Scored(loss.value, agreed, np.concatenate(likeness), np.concatenate(scores))
        statistics = np.stack([agreed, np.ones_like(agreed)], 1)
        return Summed(loss.value, QUALITY_METRICS[self.name][1:], statistics, lambda sums: (float(sums[0] / sums[1]),))


class Scored(Evaluation):
    """Cosines of pairs next to their scores, and how well each row agrees with the teacher."""

    def __init__(self, loss: float, agreement: NDArray[Any], likeness: NDArray[Any], scores: NDArray[Any]) -> None:
        self.loss, self.rows = loss, len(agreement)
        # Equal texts must tie, whatever the last bits of their cosines are.
        self._agreement, self._likeness, self._scores = agreement, np.round(likeness, 5), scores

    def metrics(self) -> dict[str, float]:
        """`spearman` and `agreement`."""
        return dict(zip(QUALITY_METRICS["sentence-embedding"], self.resampled(np.arange(self.rows)), strict=True))

    def resampled(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """Spearman's rank correlation, 0 where all scores or all cosines are the same; mean agreement."""
        from scipy.stats import rankdata  # half a second of the start of every job

        ranks = np.stack([rankdata(values[rows]) for values in (self._likeness, self._scores)])
        centred = ranks - ranks.mean(1, keepdims=True)
        spread = float(np.sqrt((centred**2).sum(1).prod()))
        spearman = float(centred.prod(0).sum()) / spread if spread else 0.0
        return spearman, float(self._agreement[rows].mean())


def pooling_of(folder: Path) -> str:
    """`mean` or `cls`, as the model's `1_Pooling/config.json` says; raises EngineError MODEL_UNUSABLE for others."""
    file = folder / "1_Pooling" / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {"pooling_mode": "mean"}
    flags = {f"pooling_mode_{name}": name.split("_")[0] for name in ("mean_tokens", "cls_token", "max_tokens")}
    flagged = [name for flag, name in flags.items() if config.get(flag)]
    chosen = config.get("pooling_mode", flagged[0] if len(flagged) == 1 else "")
    if chosen not in ("mean", "cls"):
        message = "the model pools tokens in a way that is not supported; it must be mean or cls"
        raise EngineError("MODEL_UNUSABLE", message, blame="user")
    return str(chosen)


def stacked(above: Tensor, below: Tensor, fill: int) -> Tensor:
    """Two matrices over one another, the narrower one filled up."""
    width = max(above.shape[1], below.shape[1])
    return torch.cat([functional.pad(part, (0, width - part.shape[1]), value=fill) for part in (above, below)])


def likeness_of_pairs(embeddings: Tensor) -> Tensor:
    """Cosines of (rows,), given the texts' embeddings above those of their partners."""
    texts, partners = embeddings.chunk(2)
    return functional.cosine_similarity(texts, partners)
