"""Gates: the states they look at, the gates, their files, their labels, and the policy that obeys them."""
