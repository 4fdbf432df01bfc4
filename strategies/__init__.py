"""The family of strategies: who takes part in a round, and how replies become the next global model."""
