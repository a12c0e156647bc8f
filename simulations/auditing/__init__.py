"""The claim is tested, not believed: attacks on a training, and what they prove (docs/audit-privacy.md)."""
