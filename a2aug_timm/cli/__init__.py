"""The command lines: their arguments, strict parsing, checks, and what they print. Scripts alone import it."""
