"""The official annotations of each benchmark: which file, and how one annotation reads. Builders and evaluation share them."""
