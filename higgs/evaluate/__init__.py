"""Judging speech: signal metrics, text errors, speech recognition, intervals."""
