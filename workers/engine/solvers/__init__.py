"""Solvers: which single weights of one matrix to cut, and what the others become. Pure mathematics on tensors.

Every matrix is (outputs, inputs), as in `nn.Linear`; a row holds the weights of one output.
"""
