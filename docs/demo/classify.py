"""Loads a downloaded model with plain transformers and classifies the sentences given. Imports nothing of ours.

python -I classify.py FOLDER [--trust-remote-code] SENTENCE…
"""

import json
import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(folder: str, *sentences: str) -> None:
    """Print one JSON object per sentence: its label and the probability of it."""
    trust = "--trust-remote-code" in sentences
    texts = [text for text in sentences if text != "--trust-remote-code"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust).eval()
    with torch.no_grad():
        logits = network(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    for text, row in zip(texts, logits.softmax(-1), strict=True):
        label = network.config.id2label[int(row.argmax())]
        print(json.dumps({"text": text, "label": label, "probability": round(float(row.max()), 4)}))
    ours = {name.split(".")[0] for name in sys.modules} & {"service", "workers"}
    if ours:
        sys.exit(f"our own code was imported: {sorted(ours)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
