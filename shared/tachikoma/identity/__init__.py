"""SPIFFE identities, certificates, and messages signed with them."""
