"""Images, and how they fall to the clients of a federation."""
