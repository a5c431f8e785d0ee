"""Loads a downloaded model with plain transformers and asks it about one row. Imports nothing of ours.

    python -I downloaded.py FOLDER TASK ROW

ROW is a row of the task's data set as JSON. Prints the answer as JSON.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

Row = dict[str, Any]
AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "translation": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sentence-embedding": "AutoModel",
}
NEW_TOKENS = 12
PROMPT_TOKENS = 24


def label(network: Any, tokenizer: Any, row: Row) -> str:
    """The label of a text or a pair."""
    found = network(**tokenizer(row["text"], row.get("text_pair"), return_tensors="pt")).logits
    return str(network.config.id2label[int(found.argmax())])


def span(network: Any, tokenizer: Any, row: Row) -> str:
    """The tokens between the likeliest first and the likeliest last one."""
    inputs = tokenizer(row["question"], row["context"], truncation="only_second", return_tensors="pt")
    found = network(**inputs)
    first, last = int(found.start_logits.argmax()), int(found.end_logits.argmax())
    return str(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))


def translation(network: Any, tokenizer: Any, row: Row) -> str:
    """What a beam search finds."""
    inputs = tokenizer(row["source"], return_token_type_ids=False, return_tensors="pt")
    found = network.generate(**inputs, num_beams=4, max_new_tokens=NEW_TOKENS)
    return str(tokenizer.decode(found[0], skip_special_tokens=True))


def tags(network: Any, tokenizer: Any, row: Row) -> list[str]:
    """One tag for each word, by its first token."""
    inputs = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, return_tensors="pt")
    found = network(**inputs).logits[0].argmax(-1).tolist()
    words = inputs.word_ids()
    firsts = [place for place, word in enumerate(words) if word is not None and word not in words[:place]]
    return [network.config.id2label[found[place]] for place in firsts]


def continuation(network: Any, tokenizer: Any, row: Row) -> str:
    """What follows the first tokens of a text."""
    prompt = tokenizer(row["text"], return_tensors="pt")["input_ids"][:, :PROMPT_TOKENS]
    found = network.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS
    )
    return str(tokenizer.decode(found[0, prompt.shape[1] :]))


def filled(network: Any, tokenizer: Any, row: Row) -> str:
    """The token that stands behind a mask in the place of the text's first one."""
    inputs = tokenizer(row["text"], truncation=True, return_tensors="pt")
    inputs["input_ids"][0, 1] = tokenizer.mask_token_id
    return str(tokenizer.decode(network(**inputs).logits[0, 1].argmax()))


def embedding(network: Any, tokenizer: Any, row: Row) -> list[float]:
    """The mean over the text's tokens."""
    found = network(**tokenizer(row["text"], return_tensors="pt")).last_hidden_state
    return [round(value, 4) for value in found[0].mean(0).tolist()]


ANSWERS: dict[str, Callable[[Any, Any, Row], Any]] = {
    "text-classification": label,
    "question-answering": span,
    "translation": translation,
    "token-classification": tags,
    "causal-lm": continuation,
    "masked-lm": filled,
    "sentence-embedding": embedding,
}


def main(folder: str, task: str, row: str) -> None:
    """Load, ask, print; code is trusted where the download brings its own."""
    trust = any(Path(folder).glob("modeling_*.py"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = getattr(transformers, AUTO[task]).from_pretrained(folder, trust_remote_code=trust).eval()
    with torch.inference_mode():
        print(json.dumps(ANSWERS[task](network, tokenizer, json.loads(row)), ensure_ascii=False))
    if ours := {name.split(".")[0] for name in sys.modules} & {"service", "workers"}:
        sys.exit(f"our own code was imported: {sorted(ours)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
