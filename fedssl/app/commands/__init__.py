"""The commands of the command line: each is one screen of glue over the library, which it imports itself."""
