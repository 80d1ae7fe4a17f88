"""Calibration of a codec profile: what terrace must know of a model's KV to store it in few bits."""
