"""Stage two: features → batches → Longformer → head → logits; fitting and metrics."""
