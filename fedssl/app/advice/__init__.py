"""Advice on a method for a federation, from measured tables alone."""
