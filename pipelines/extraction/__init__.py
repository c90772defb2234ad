"""Stage one: feature specification, planning, workers, scheduling, summary."""
