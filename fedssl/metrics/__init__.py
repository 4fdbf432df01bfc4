"""What is measured: accuracy on held-out images, quality of pseudo-labels."""
