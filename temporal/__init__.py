"""Stage two: batches of features → encoder → head → logits; training, inference and metrics."""
