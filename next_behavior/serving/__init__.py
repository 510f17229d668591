"""Answers without torch: a saved model exported once, predicted with in real time, in batches, and behind a service."""
