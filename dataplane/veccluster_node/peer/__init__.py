"""What nodes say to each other: messages, and the two ends that carry them."""
