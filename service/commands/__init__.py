"""The commands of `secateur`, one file per noun."""
