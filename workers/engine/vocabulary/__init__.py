"""Vocabulary: cutting tokenizer and embeddings to what a data set's texts use (TextPruner: Yang et al., 2022)."""

from workers.engine.vocabulary.network import cut_vocabulary
from workers.engine.vocabulary.texts import Target, Text, Words, texts_of
from workers.engine.vocabulary.tokenizer import cut_tokenizer

__all__ = ["Target", "Text", "Words", "cut_tokenizer", "cut_vocabulary", "texts_of"]
