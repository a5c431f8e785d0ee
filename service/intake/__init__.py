"""Bytes at the door: everything that a stranger sends is read here, by our own bounded readers, before it is kept."""
