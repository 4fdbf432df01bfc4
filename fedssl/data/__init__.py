"""The data of a federation: where its images come from, and which client holds which of them."""
