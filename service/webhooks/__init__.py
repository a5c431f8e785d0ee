"""Webhooks as in the Standard Webhooks specification 1.0.0: an outbox in the database, and what empties it."""
