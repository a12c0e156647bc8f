"""A second implementation of the secure sum, slow and plain, written from `docs/protocol.md` alone.

It imports nothing of the product; a test says so.
"""
