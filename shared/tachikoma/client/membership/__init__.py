"""The side of a member: joining with a token, and the renewal of the identity that came with it."""
