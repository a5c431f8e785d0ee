"""Tasks: what a network is for. Rows in, batches out; the loss to train by and the figures to judge by."""

from service.specs import TaskName
from workers.engine.tasks.causal_lm import CausalLM
from workers.engine.tasks.masked_lm import MaskedLM
from workers.engine.tasks.question_answering import QuestionAnswering
from workers.engine.tasks.sentence_embedding import SentenceEmbedding
from workers.engine.tasks.task import Batch, Settings, Task
from workers.engine.tasks.text_classification import TextClassification
from workers.engine.tasks.token_classification import TokenClassification
from workers.engine.tasks.translation import Translation

__all__ = ["TASKS", "Batch", "Settings", "Task"]

TASKS: dict[TaskName, type[Task]] = {
    "text-classification": TextClassification,
    "question-answering": QuestionAnswering,
    "translation": Translation,
    "token-classification": TokenClassification,
    "causal-lm": CausalLM,
    "masked-lm": MaskedLM,
    "sentence-embedding": SentenceEmbedding,
}
