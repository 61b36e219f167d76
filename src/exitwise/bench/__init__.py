"""What early exits cost and keep, measured: tasks, runs, comparisons, and the report drawn from them."""
