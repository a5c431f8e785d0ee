"""History checking: clients work while everything is killed, and what they were told is compared with what is there.

`workload` asks, `faults` breaks, `history` notes both, `state` reads what is left, `checker` judges it. The last is
pure: it can judge again what a run has left, by `python -m tests.nemesis --judge FOLDER`.
"""
