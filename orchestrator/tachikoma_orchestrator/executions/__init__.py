"""Executions from acceptance to completion: ledger, receipts, output, expiry, cancellation."""
