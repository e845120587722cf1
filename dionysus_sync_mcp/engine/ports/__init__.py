"""What the use-cases need of the outside, as small Protocols, a module for each use-case."""
