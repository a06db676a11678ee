"""Exit gates: input states, files, labels, stores, training and calibration, and the policy that applies them."""
