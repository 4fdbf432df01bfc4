"""What server and clients send each other, how a reply is checked, and how replies become one model."""
