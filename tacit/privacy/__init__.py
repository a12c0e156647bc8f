"""What is promised and how it is kept: plan, noise, accountant, ledger, policy (docs/accounting.md)."""
