"""Linen networks: images -> (box_deltas, class_logits). They use no loss and no config."""
