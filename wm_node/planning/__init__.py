"""Planning: what a candidate would lead to, what that costs, and which one to take."""
