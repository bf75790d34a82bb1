"""Serving simulation: requests, scheduler, KV pool, router, and what they add up to."""
