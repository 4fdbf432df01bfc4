"""The commands of the command line: each is a thin layer over the library, which it imports only when it runs."""
