#!/bin/sh
# Is the pruned model good enough? The exit code is the answer: 0 yes, 4 no, 3, 5 and 6 nobody knows.
# In: MODEL and DATASET (folders), SPEC (a job with "acceptance"); SECATEUR_URL and SECATEUR_API_KEY.
# Out, in a new folder OUT: the model, its report, junit.xml, summary.md.
set -eu
OUT=${OUT:-secateur-gate}
mkdir -p "$OUT"
exec secateur run --model "$MODEL" --dataset "$DATASET" --spec "$SPEC" --out "$OUT/model" \
  --junit "$OUT/junit.xml" --markdown "$OUT/summary.md"
