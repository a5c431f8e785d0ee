"""The engine: a pure function from a directory to a directory. Knows no database, queue or HTTP."""
