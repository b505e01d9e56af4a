"""Linen networks: images -> (box_deltas, class_logits). No loss, no config."""
