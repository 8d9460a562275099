"""One short visit to a bare GPU machine: a process a step, a line a result; see README.md."""
