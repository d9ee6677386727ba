"""A room for each of the package's; ``helpers`` has what they share, and stands on the path of imports.

``faults`` kills and damages the command line, ``provoked`` makes it fail in every way that a user can,
``safety`` gives it files that mean harm, ``documentation`` runs what the pages show.
"""
