"""Trackers: services and files that show runs beside their own record, one tracker a file."""
