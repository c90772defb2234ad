"""Videos and features → logits, predictions and metrics."""
