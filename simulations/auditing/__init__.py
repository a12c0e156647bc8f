"""The claim is tested, not believed: attacks on a training of one's own, and what they prove (docs/audit-privacy.md)."""
