"""Where runs are tracked beside their record, one tracker a file."""
