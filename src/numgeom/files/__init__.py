"""How does anything the package keeps reach a disk, and come back without doing harm?

Writing is atomic: a file appears whole or not at all. Reading treats every file as hostile: no code
in it runs, sizes are compared with the size of the file before memory is taken, and whatever is
wrong ends in a `FileFormatError` that names the file. `SECURITY.md` says what is promised.
"""
